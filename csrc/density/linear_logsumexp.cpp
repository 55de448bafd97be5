// CUDA only: elsewhere robustcore/ops goes chunk by chunk.
#include "density/linear_logsumexp.h"

#include <algorithm>

#include "common/device.h"
#include "common/row_checks.h"

namespace robustcore::density {
namespace {

void no_cpu_kernel(const SweepArgs&) {
  fail("features: got a tensor on the CPU, want one on a GPU");
}

// A matrix as the tensor cores read it.
const void* rows_of(const char* name, const Tensor& t, int64_t count, const Tensor& features) {
  check(t.dim() == 2 && t.size(0) == count && t.size(1) == features.size(1) &&
            t.scalar_type() == features.scalar_type(),
        name, ": got ", name_of(t.scalar_type()), " of shape ", shape_of(t), ", want ",
        name_of(features.scalar_type()), " of shape [", count, ", ", features.size(1), "]");
  check_same_device(name, t, features, "features");
  const int64_t bytes = t.size(1) * t.element_size();
  check(t.is_contiguous() && bytes > 0 && bytes % 16 == 0 &&
            reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0,
        name, ": want contiguous rows of whole 16 bytes, aligned to them");
  return t.const_data_ptr();
}
const void* rows_of(const char* name, const OptionalTensor& t, int64_t count,
                    const Tensor& features) {
  return t ? rows_of(name, *t, count, features) : nullptr;
}

template <class T = float>
T* numbers_of(const char* name, const OptionalTensor& t, int64_t count, const Tensor& features) {
  if (!t) return nullptr;
  constexpr ScalarType type = sizeof(T) == 4 ? ScalarType::Float : ScalarType::Long;
  check_vector(name, *t, count, type, features, "features");
  check(t->is_contiguous(), name, ": has to be contiguous");
  return static_cast<T*>(const_cast<void*>(t->const_data_ptr()));
}

struct Layer {
  SweepSide rows, classes;
  SweepArgs args;
};

Layer layer_of(const Tensor& features,              // [N, D]
               const Tensor& weight,                // [K, D]
               const OptionalTensor& minus_bias) {  // [K]
  const ScalarType type = features.scalar_type();
  check(features.dim() == 2 && weight.dim() == 2 &&
            (type == ScalarType::Float || type == ScalarType::BFloat16),
        "features: got ", name_of(type), " of shape ", shape_of(features),
        ", want a matrix of float32 or bfloat16");
  const int64_t n = features.size(0), k = weight.size(0), most = int64_t{1} << 30;
  check(n > 0 && k > 0 && std::max({n, k, features.size(1)}) < most,
        "features, weight: got shapes ", shape_of(features), " and ", shape_of(weight),
        ", want sides in [1, 2**30)");
  Layer layer{};
  layer.rows.count = n, layer.rows.data = rows_of("features", features, n, features);
  layer.classes.count = k, layer.classes.data = rows_of("weight", weight, k, features);
  layer.classes.shift = numbers_of("minus_bias", minus_bias, k, features);
  layer.args.width = features.size(1);
  layer.args.dtype = floating_dtype("features", type);
  return layer;
}

void sweep(const Tensor& features, SweepArgs args, int64_t blocks) {
  check(blocks >= 1, "blocks: got ", blocks, ", want at least 1");
  const SweepPlan plan = plan_of(args, blocks);
  args.splits = plan.splits;
  const auto numbers = [&](int64_t count) {
    return torch::stable::new_empty(features, {count}, ScalarType::Float);
  };
  Tensor max = numbers(plan.numbers()), sums = numbers(plan.numbers());
  Tensor parts = numbers(args.value ? plan.numbers() * parts_pitch(args.width) : 0);
  for (int64_t first = 0; first < args.left.count; first += plan.at_once) {
    SweepArgs part = part_of(args, first, plan.at_once);
    part.max = max.mutable_data_ptr<float>(), part.sums = sums.mutable_data_ptr<float>();
    part.parts = parts.mutable_data_ptr<float>();
    run(features, part, no_cpu_kernel, RC_CUDA(linear_sweep_cuda));
  }
}

std::tuple<Tensor, Tensor> linear_logsumexp_online(const Tensor& features,            // [N, D]
                                                   const Tensor& weight,              // [K, D]
                                                   const OptionalTensor& minus_bias,  // [K]
                                                   bool with_mean, int64_t blocks) {
  Layer layer = layer_of(features, weight, minus_bias);
  SweepArgs& args = layer.args;
  args.weights = SweepWeights::kOnline;
  args.left = layer.rows, args.right = layer.classes;
  args.out_dtype = DType::kFloat32;
  Tensor lse = torch::stable::new_empty(features, {features.size(0)}, ScalarType::Float);
  Tensor mean = torch::stable::new_empty(
      features, {with_mean ? features.size(0) : 0, features.size(1)}, ScalarType::Float);
  args.lse = lse.mutable_data_ptr<float>();
  if (with_mean) args.value = args.right.data, args.out = mean.mutable_data_ptr();
  sweep(features, args, blocks);
  return {lse, mean};
}

void linear_logsumexp_weights_(const OptionalTensor& out, const OptionalTensor& sums,
                               const Tensor& features, const Tensor& weight,
                               const OptionalTensor& minus_bias, const OptionalTensor& v_features,
                               const OptionalTensor& v_weight, const OptionalTensor& minus_v_bias,
                               const Tensor& shift,                // [N]
                               const OptionalTensor& grad,         // [N]
                               const OptionalTensor& dot,          // [N]
                               const OptionalTensor& targets,      // [N]
                               const OptionalTensor& grad_target,  // [N]
                               const OptionalTensor& value,  // [N, D] with of_classes, else [K, D]
                               bool of_classes, bool curvature, bool add, int64_t blocks) {
  Layer layer = layer_of(features, weight, minus_bias);
  const int64_t n = features.size(0), k = weight.size(0), left = of_classes ? k : n;
  SweepArgs& args = layer.args;
  args.weights = curvature ? SweepWeights::kCurvature : SweepWeights::kGradient;
  layer.rows.along = rows_of("v_features", v_features, n, features);
  layer.classes.along = rows_of("v_weight", v_weight, k, features);
  layer.classes.along_shift = numbers_of("minus_v_bias", minus_v_bias, k, features);
  layer.rows.shift = numbers_of("shift", shift, n, features);
  layer.rows.along_shift = numbers_of("dot", dot, n, features);
  args.scale = numbers_of("grad", grad, n, features);
  args.targets = numbers_of<int64_t>("targets", targets, n, features);
  args.grad_target = numbers_of("grad_target", grad_target, n, features);
  check(targets.has_value() == grad_target.has_value(),
        "grad_target: wanted with targets, and only then");
  args.classes_left = of_classes;
  args.left = of_classes ? layer.classes : layer.rows;
  args.right = of_classes ? layer.rows : layer.classes;
  check(value.has_value() == out.has_value(), "out: wanted with value, and only then");
  args.value = rows_of("value", value, of_classes ? n : k, features);
  if (out) {
    const ScalarType type = out->scalar_type();
    check(out->dim() == 2 && out->size(0) == left && out->size(1) == features.size(1) &&
              out->is_contiguous() && (type == ScalarType::Float || type == ScalarType::BFloat16),
          "out: got ", name_of(type), " of shape ", shape_of(*out),
          ", want a contiguous one of shape [", left, ", ", features.size(1), "]");
    check_same_device("out", *out, features, "features");
    args.out_dtype = floating_dtype("out", type);
    args.out = Tensor(*out).mutable_data_ptr();
    args.add = add;
  }
  args.row_sums = numbers_of("sums", sums, left, features);
  sweep(features, args, blocks);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "linear_logsumexp_online(Tensor features, Tensor weight, Tensor? minus_bias, bool with_mean, "
      "int blocks) -> (Tensor, Tensor)");
  m.def(
      "linear_logsumexp_weights_(Tensor(a!)? out, Tensor(b!)? sums, Tensor features, Tensor "
      "weight, Tensor? minus_bias, Tensor? v_features, Tensor? v_weight, Tensor? minus_v_bias, "
      "Tensor shift, Tensor? grad, Tensor? dot, Tensor? targets, Tensor? grad_target, Tensor? "
      "value, bool of_classes, bool curvature, bool add, int blocks) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("linear_logsumexp_online", TORCH_BOX(&linear_logsumexp_online));
  m.impl("linear_logsumexp_weights_", TORCH_BOX(&linear_logsumexp_weights_));
}

}  // namespace robustcore::density
