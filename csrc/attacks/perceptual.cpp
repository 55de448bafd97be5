// Nothing is allocated or written before every check has passed.
#include "attacks/perceptual.h"

#include <tuple>

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void perceptual_cpu(const PerceptualArgs& args) {
  const int64_t units = args.images * ceil_div(args.pixels, kColumns);
  run_units(RC_PICK(perceptual), args, units, 4 * args.images * args.channels * args.pixels);
}

PerceptualArgs perceptual_args(const Tensor& features, const Tensor& reference,
                               const OptionalTensor& weights) {
  check(features.dim() == 4 && features.is_contiguous(), "features: got shape ", shape_of(features),
        ", want contiguous [B, C, H, W]");
  check_like("reference", reference, features, "features");
  check(reference.is_contiguous(), "reference: has to be contiguous");
  PerceptualArgs args{};
  args.images = features.size(0), args.channels = features.size(1);
  args.pixels = features.size(2) * features.size(3);
  args.dtype = floating_dtype("features", features.scalar_type());
  args.features = features.const_data_ptr(), args.reference = reference.const_data_ptr();
  if (weights) {
    check(weights->dim() == 1 && weights->size(0) == args.channels && weights->is_contiguous() &&
              weights->scalar_type() == arithmetic_type("features", features),
          "weights: got ", name_of(weights->scalar_type()), " of shape ", shape_of(*weights),
          ", want contiguous [", args.channels, "]");
    check_same_device("weights", *weights, features, "features");
    args.weights = weights->const_data_ptr();
  }
  return args;
}

Tensor perceptual_distance(const Tensor& features,           // [B, C, H, W]
                           const Tensor& reference,          // [B, C, H, W]
                           const OptionalTensor& weights) {  // [C]
  PerceptualArgs args = perceptual_args(features, reference, weights);
  const std::vector<int64_t> sizes{features.size(0), features.size(2), features.size(3)};
  Tensor distance =
      empty_on(features, sizes, dense_strides(sizes, false), arithmetic_type("features", features));
  args.distance = distance.mutable_data_ptr();
  if (distance.numel() > 0) run(features, args, perceptual_cpu, RC_CUDA(perceptual_cuda));
  return distance;
}

std::tuple<Tensor, Tensor> perceptual_distance_backward(const Tensor& upstream,   // [B, H, W]
                                                        const Tensor& features,   // [B, C, H, W]
                                                        const Tensor& reference,  // [B, C, H, W]
                                                        const OptionalTensor& weights,
                                                        bool of_features, bool of_reference) {
  PerceptualArgs args = perceptual_args(features, reference, weights);
  check(upstream.dim() == 3 && upstream.is_contiguous() && upstream.size(0) == features.size(0) &&
            upstream.size(1) == features.size(2) && upstream.size(2) == features.size(3) &&
            upstream.scalar_type() == arithmetic_type("features", features),
        "upstream: got ", name_of(upstream.scalar_type()), " of shape ", shape_of(upstream),
        ", which is not of features ", shape_of(features));
  check_same_device("upstream", upstream, features, "features");
  args.upstream = upstream.const_data_ptr();
  const std::vector<int64_t> none{0}, sizes(features.sizes().begin(), features.sizes().end());
  const auto gradient = [&](bool wanted, void*& data) {
    const auto& shape = wanted ? sizes : none;
    Tensor grad = empty_on(features, shape, dense_strides(shape, false), features.scalar_type());
    if (wanted) data = grad.mutable_data_ptr();
    return grad;
  };
  Tensor of_f = gradient(of_features, args.grad_features);
  Tensor of_r = gradient(of_reference, args.grad_reference);
  if (features.numel() > 0) run(features, args, perceptual_cpu, RC_CUDA(perceptual_cuda));
  return {of_f, of_r};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "perceptual_distance(Tensor features, Tensor reference, Tensor? weights) -> Tensor distance");
  m.def(
      "perceptual_distance_backward(Tensor upstream, Tensor features, Tensor reference, "
      "Tensor? weights, bool of_features, bool of_reference) -> (Tensor, Tensor)");
}

RC_LIBRARY_IMPL(m) {
  m.impl("perceptual_distance", TORCH_BOX(&perceptual_distance));
  m.impl("perceptual_distance_backward", TORCH_BOX(&perceptual_distance_backward));
}

}  // namespace robustcore::attacks
