// Nothing is allocated or written before every check has passed.
#include "smoothing/noise.h"

#include <cmath>

#include "common/cpu.h"
#include "common/device.h"
#include "smoothing/noise_outputs.h"
#include "smoothing/output.h"

namespace robustcore::smoothing {
namespace {

void noise_cpu(const NoiseArgs& args) {
  run_units(RC_PICK(noise), args, noise_tiling(args).units(),
            args.images * args.samples * args.elements);
}

void sums_cpu(const SumsArgs& args) {
  run_units(RC_PICK(sums), args, sums_units(args), args.images * args.samples * args.elements);
}

int64_t channels_of(const Tensor& x, bool channels_last) {
  // One channel or one pixel: both orders are the same.
  return channels_last && x.size(2) * x.size(3) > 1 ? x.size(1) : 1;
}

void run_noise(NoiseArgs args, const Tensor& x, bool channels_last, Tensor& out) {
  args.out = out.mutable_data_ptr();
  args.channels = channels_of(x, channels_last);
  if (args.images * args.samples * args.elements == 0) return;
  run(x, args, noise_cpu, RC_CUDA(noise_cuda));
}

}  // namespace

NoiseArgs noise_args(Distribution distribution,
                     const Tensor& x,  // [B, *D]
                     int64_t num_samples, double sigma,
                     const OptionalTensor& sigma_map,  // broadcasts to [B, *D]
                     const OptionalTensor& mean, const OptionalTensor& std,  // broadcast to [B, *D]
                     const StreamArguments& stream) {
  check(x.dim() >= 1, "x: got a 0-d tensor, want [B, *D]");
  check(num_samples >= 0, "num_samples: got ", num_samples, ", want at least 0");
  check(sigma_map || (std::isfinite(sigma) && sigma >= 0),
        distribution == Distribution::kGaussian ? "sigma: got " : "scale: got ", sigma,
        ", want a finite number, at least 0");
  NoiseArgs args{};
  args.distribution = distribution;
  args.images = x.size(0);
  args.samples = num_samples;
  args.elements = elements_of(x, 1);
  args.stream = make_stream(x, args.images, args.samples, args.elements, stream);
  const auto view = [&](const char* name, const OptionalTensor& t) {
    if (!t) return StridedView{};
    check_same_device(name, *t, x, "x");
    return strided_view(name, *t, x.sizes());
  };
  args.x = view("x", x);
  args.sigma = view(distribution == Distribution::kGaussian ? "sigma" : "scale", sigma_map);
  args.mean = view("mean", mean);
  args.std = view("std", std);
  args.sigma_value = sigma;
  return args;
}

void noise_into(NoiseArgs args, const Tensor& x, bool channels_last, Tensor& out) {
  const OutputLayout layout = output_layout(x, args.samples, channels_last);
  check_same_device("out", out, x, "x");
  check_layout(out, layout, channels_last);
  args.out_dtype = floating_dtype("out", out.scalar_type());
  run_noise(args, x, channels_last, out);
}

Tensor new_noise(NoiseArgs args, const Tensor& x, ScalarType dtype, bool channels_last) {
  args.out_dtype = floating_dtype("dtype", dtype);
  const OutputLayout layout = output_layout(x, args.samples, channels_last);
  Tensor out = empty_on(x, layout.sizes, layout.strides, dtype);
  run_noise(args, x, channels_last, out);
  return out;
}

namespace {

template <Distribution kDistribution>
void noise_out(const Tensor& x, int64_t num_samples, double sigma, const OptionalTensor& sigma_map,
               const OptionalTensor& mean, const OptionalTensor& std, RC_STREAM_PARAMETERS,
               bool channels_last, Tensor out) {
  noise_into(
      noise_args(kDistribution, x, num_samples, sigma, sigma_map, mean, std, RC_STREAM_ARGUMENTS),
      x, channels_last, out);
}

template <Distribution kDistribution>
Tensor noise(const Tensor& x, int64_t num_samples, double sigma, const OptionalTensor& sigma_map,
             const OptionalTensor& mean, const OptionalTensor& std, RC_STREAM_PARAMETERS,
             ScalarType dtype, bool channels_last) {
  return new_noise(
      noise_args(kDistribution, x, num_samples, sigma, sigma_map, mean, std, RC_STREAM_ARGUMENTS),
      x, dtype, channels_last);
}

NoiseArgs splitting_args(const Tensor& x, int64_t num_samples, double scale, int64_t levels,
                         const OptionalTensor& mean, const OptionalTensor& std,
                         const StreamArguments& stream) {
  check(levels > 0 || scale > 0, "scale: got ", scale, ", want a number above 0");
  check(levels >= 0 && levels < (int64_t{1} << 20), "levels: got ", levels,
        ", want an integer in [0, 2**20)");
  NoiseArgs args =
      noise_args(Distribution::kSplitting, x, num_samples, scale, std::nullopt, mean, std, stream);
  check(levels == 0 || stream.sample_offset + num_samples <= levels, "num_samples: got samples ",
        stream.sample_offset, " to ", stream.sample_offset + num_samples, ", there are ", levels,
        " levels");
  args.levels = levels;
  return args;
}

void splitting_noise_out(const Tensor& x, int64_t num_samples, double scale, int64_t levels,
                         const OptionalTensor& mean, const OptionalTensor& std,
                         RC_STREAM_PARAMETERS, bool channels_last, Tensor out) {
  noise_into(splitting_args(x, num_samples, scale, levels, mean, std, RC_STREAM_ARGUMENTS), x,
             channels_last, out);
}

Tensor splitting_noise(const Tensor& x, int64_t num_samples, double scale, int64_t levels,
                       const OptionalTensor& mean, const OptionalTensor& std, RC_STREAM_PARAMETERS,
                       ScalarType dtype, bool channels_last) {
  return new_noise(splitting_args(x, num_samples, scale, levels, mean, std, RC_STREAM_ARGUMENTS), x,
                   dtype, channels_last);
}

template <Distribution kDistribution>
std::tuple<Tensor, Tensor> noise_sums(const Tensor& grad,  // [B, S, *D]
                                      RC_STREAM_PARAMETERS, bool with_noise) {
  check(grad.dim() >= 2, "grad: got shape ", shape_of(grad), ", want [B, S, *D]");
  SumsArgs args{};
  args.distribution = kDistribution;
  args.images = grad.size(0);
  args.samples = grad.size(1);
  args.elements = elements_of(grad, 2);
  args.stream = make_stream(grad, args.images, args.samples, args.elements, RC_STREAM_ARGUMENTS);
  args.grad = strided_view("grad", grad, grad.sizes(), /*has_samples=*/true);
  std::vector<int64_t> sizes{grad.size(0)};
  for (int64_t d = 2; d < grad.dim(); ++d) sizes.push_back(grad.size(d));
  const auto dtype = args.grad.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  Tensor sum = torch::stable::new_zeros(grad, sizes, dtype);
  if (!with_noise) sizes = {0};
  Tensor noise_sum = torch::stable::new_zeros(grad, sizes, dtype);
  args.sum = sum.mutable_data_ptr();
  args.noise_sum = with_noise ? noise_sum.mutable_data_ptr() : nullptr;
  if (args.images * args.samples * args.elements > 0) {
    run(grad, args, sums_cpu, RC_CUDA(sums_cuda));
  }
  return {sum, noise_sum};
}

}  // namespace

#define RC_NOISE_SCHEMA                                                                  \
  "Tensor x, SymInt num_samples, float sigma, Tensor? sigma_map, Tensor? mean, Tensor? " \
  "std, " RC_STREAM_SCHEMA ", "
#define RC_SPLITTING_SCHEMA                                                          \
  "Tensor x, SymInt num_samples, float scale, SymInt levels, Tensor? mean, Tensor? " \
  "std, " RC_STREAM_SCHEMA ", "
#define RC_DEFINE_NOISE(name)                                                        \
  m.def(name "(" RC_NOISE_SCHEMA "ScalarType dtype, bool channels_last) -> Tensor"); \
  m.def(name "_out(" RC_NOISE_SCHEMA "bool channels_last, Tensor(a!) out) -> ()");   \
  m.def(name "_sums(Tensor grad, " RC_STREAM_SCHEMA ", bool with_noise) -> (Tensor, Tensor)")

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  RC_DEFINE_NOISE("gaussian_noise");
  RC_DEFINE_NOISE("uniform_noise");
  RC_DEFINE_NOISE("laplace_noise");
  m.def("splitting_noise(" RC_SPLITTING_SCHEMA "ScalarType dtype, bool channels_last) -> Tensor");
  m.def("splitting_noise_out(" RC_SPLITTING_SCHEMA "bool channels_last, Tensor(a!) out) -> ()");
}

template <Distribution kDistribution, class Library>
void implement_noise(Library& m, const char* name, const char* name_out, const char* name_sums) {
  m.impl(name, TORCH_BOX(&noise<kDistribution>));
  m.impl(name_out, TORCH_BOX(&noise_out<kDistribution>));
  m.impl(name_sums, TORCH_BOX(&noise_sums<kDistribution>));
}

RC_LIBRARY_IMPL(m) {
  using enum Distribution;
  implement_noise<kGaussian>(m, "gaussian_noise", "gaussian_noise_out", "gaussian_noise_sums");
  implement_noise<kUniform>(m, "uniform_noise", "uniform_noise_out", "uniform_noise_sums");
  implement_noise<kLaplace>(m, "laplace_noise", "laplace_noise_out", "laplace_noise_sums");
  m.impl("splitting_noise", TORCH_BOX(&splitting_noise));
  m.impl("splitting_noise_out", TORCH_BOX(&splitting_noise_out));
}

}  // namespace robustcore::smoothing
