// Schemas and checks of the exponential of a skew convolution. Nothing is allocated or written
// before every check has passed. Memory comes dense, contiguous or channels last: the Python side
// brings it there, because convolutions hand it over like that anyway.
#include "lipschitz/series.h"

#include "common/cpu.h"
#include "common/device.h"
#include "common/tensor.h"

namespace robustcore::lipschitz {
namespace {

bool same_layout(const Tensor& t, const Tensor& z) {
  if (t.dim() != z.dim() || t.scalar_type() != z.scalar_type()) return false;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) != z.size(d) || (t.size(d) != 1 && t.stride(d) != z.stride(d))) return false;
  }
  return true;
}

// Every element once, without holes, in whatever order of dimensions.
bool is_dense(const Tensor& t) {
  int64_t reach = 1;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.stride(d) == 0 && t.size(d) > 1) return false;
    reach += (t.size(d) - 1) * t.stride(d);
  }
  return t.numel() == 0 || reach == t.numel();
}

// ---- A step, on any device -----------------------------------------------------------------------

void update_cpu(const UpdateArgs& args) {
  run_units(RC_PICK(update), args, ceil_div(args.count, kUpdateRun), args.count);
}

void conv_exp_update(const Tensor& z, const OptionalTensor& a, const OptionalTensor& b,
                     const OptionalTensor& total,  // all [N, C, H, W], laid out alike
                     double alpha, double beta, double gamma, double total_scale, double delta,
                     Tensor out, OptionalTensor total_out) {
  check(is_dense(z), "z: has holes or repeats, shape ", shape_of(z), "; want dense memory");
  check(!total == !total_out, "total_out: want it exactly where total is given");
  const auto data = [&](const char* name, const OptionalTensor& t) -> void* {
    if (!t) return nullptr;
    check_same_device(name, *t, z, "z");
    check(same_layout(*t, z), name, ": got ", torch::headeronly::toString(t->scalar_type()), " ",
          shape_of(*t), ", want the dtype, shape and strides of z ", shape_of(z));
    return const_cast<void*>(t->const_data_ptr());
  };
  UpdateArgs args{};
  args.count = z.numel();
  args.dtype = floating_dtype("z", z.scalar_type());
  args.z = z.const_data_ptr();
  args.a = data("a", a);
  args.b = data("b", b);
  args.total = data("total", total);
  args.out = data("out", out);
  args.total_out = data("total_out", total_out);
  args.alpha = alpha, args.beta = beta, args.gamma = gamma;
  args.total_scale = total_scale, args.delta = delta;
  if (args.count > 0) run(z, args, update_cpu, RC_CUDA(update_cuda));
}

// ---- A whole series, on the CPU ------------------------------------------------------------------

WinogradShape shape_with(int64_t images, int64_t channels, int64_t height, int64_t width,
                         int64_t tile) {
  check(tile == 2 || tile == 4, "tile: got ", tile, ", want 2 or 4");
  check(winograd_block() > 0, "conv_exp_series: this processor has no kernel for it");
  return {images, channels, channels, height, width, 1, 1, tile};
}

WinogradShape shape_with(const Tensor& x, int64_t tile) {
  check(x.dim() == 4 && x.scalar_type() == ScalarType::Float && !x.is_cuda(), "x: got ",
        name_of(x.scalar_type()), " ", shape_of(x), ", want float32 [N, C, H, W] on the CPU");
  check(is_channels_last(x) || x.numel() == 0, "x: want channels_last memory");
  return shape_with(x.numel() > 0 ? x.size(0) : 0, x.size(1), x.size(2), x.size(3), tile);
}

// The one plan of both passes: results are staged in their turn, so as many channels are padded.
WinogradPlan plan_of(const WinogradShape& shape) {
  const int64_t block = winograd_block();
  return {shape, block, block, block};
}

WinogradGradientPlan gradient_plan_of(const WinogradShape& shape, int64_t degree) {
  const int64_t block = winograd_block();
  return {shape, block, block, degree};
}

const float* packed_data(const Tensor& packed, const WinogradPlan& plan) {
  check(packed.dim() == 1 && packed.scalar_type() == ScalarType::Float && !packed.is_cuda() &&
            packed.is_contiguous() && packed.size(0) == plan.filter(),
        "packed: got ", shape_of(packed), ", want [", plan.filter(),
        "], what conv_exp_pack returns for x's channels, this tile and this instruction set");
  return packed.const_data_ptr<float>();
}

// What the ops of a series share, checked.
SeriesArgs series_args(const Tensor& x, const Tensor& packed,
                       const std::vector<double>& coefficients, double first, double step,
                       double carry, int64_t tile) {
  const WinogradPlan plan = plan_of(shape_with(x, tile));
  const auto degree = static_cast<int64_t>(coefficients.size()) - 1;
  check(degree >= 1 && degree <= SeriesArgs::kMaxDegree, "coefficients: got ", degree + 1,
        ", want 2 to ", SeriesArgs::kMaxDegree + 1);
  SeriesArgs args{plan,
                  degree,
                  {},
                  static_cast<float>(first),
                  static_cast<float>(step),
                  static_cast<float>(carry),
                  packed_data(packed, plan),
                  x.const_data_ptr<float>(),
                  nullptr,
                  nullptr};
  for (int64_t k = 0; k <= degree; ++k) args.coefficients[k] = static_cast<float>(coefficients[k]);
  return args;
}

Tensor empty_channels_last(const Tensor& x, int64_t images) {
  const std::vector<int64_t> sizes{images, x.size(1), x.size(2), x.size(3)};
  return empty_on(x, sizes, dense_strides(sizes, true), ScalarType::Float);
}

// The filter's transform, in the order that the active instruction set reads it.
Tensor conv_exp_pack(const Tensor& kernel, int64_t tile) {  // [C, C, 3, 3]
  check(kernel.dim() == 4 && kernel.scalar_type() == ScalarType::Float && !kernel.is_cuda() &&
            kernel.is_contiguous() && kernel.size(0) == kernel.size(1) && kernel.size(2) == 3 &&
            kernel.size(3) == 3,
        "kernel: got ", name_of(kernel.scalar_type()), " ", shape_of(kernel),
        ", want contiguous float32 [C, C, 3, 3] on the CPU");
  const int64_t channels = kernel.size(0);
  const WinogradPlan plan = plan_of(shape_with(1, channels, 1, 1, tile));  // of any images
  Tensor packed = empty_on(kernel, {plan.filter()}, {1}, ScalarType::Float);
  pack_filter({channels, channels, plan.in, tile, false, kernel.const_data_ptr<float>(),
               packed.mutable_data_ptr<float>()});
  return packed;
}

std::tuple<Tensor, Tensor> conv_exp_series(const Tensor& x,       // [N, C, H, W]
                                           const Tensor& packed,  // of conv_exp_pack
                                           std::vector<double> coefficients, double first,
                                           double step, double carry, int64_t tile, bool keep) {
  SeriesArgs args = series_args(x, packed, coefficients, first, step, carry, tile);
  Tensor y = empty_channels_last(x, x.size(0));
  Tensor kept = empty_channels_last(x, keep ? (args.degree - 1) * x.size(0) : 0);
  args.y = y.mutable_data_ptr<float>();
  args.kept = kept.numel() > 0 ? kept.mutable_data_ptr<float>() : nullptr;
  run_with_scratch(RC_PICK_WIDE(series), args, args.plan.groups, args.scratch());
  return {y, kept};
}

// u[1], u[2], ... of x, or nullptr to compute them again.
float* kept_data(const OptionalTensor& kept, const Tensor& x, int64_t degree) {
  if (!kept) return nullptr;
  check(!kept->is_cuda() && kept->scalar_type() == ScalarType::Float &&
            kept->numel() == (degree - 1) * x.numel(),
        "kept: got ", shape_of(*kept), ", want what conv_exp_series returned for x ", shape_of(x));
  return const_cast<float*>(kept->const_data_ptr<float>());
}

// The gradient of x, and what the filter's is made of by conv_exp_series_gradient: apart, because
// a wide filter is large, packed and as a gradient, and need not be there in both forms.
std::tuple<Tensor, Tensor> conv_exp_series_backward(const Tensor& grad, const Tensor& x,
                                                    const Tensor& packed,
                                                    const OptionalTensor& kept,
                                                    std::vector<double> coefficients, double first,
                                                    double step, double carry, int64_t tile) {
  SeriesArgs series = series_args(x, packed, coefficients, first, step, carry, tile);
  series.kept = kept_data(kept, x, series.degree);
  check(!grad.is_cuda() && same_layout(grad, x), "grad: got ", name_of(grad.scalar_type()), " ",
        shape_of(grad), ", want the dtype, shape and strides of x ", shape_of(x));
  const WinogradGradientPlan plan = gradient_plan_of(series.plan.shape, series.degree);
  Tensor grad_x = empty_channels_last(x, x.size(0));
  Tensor work = empty_on(x, {plan.work()}, {1}, ScalarType::Float);
  const SeriesBackwardArgs args{series, plan, grad.const_data_ptr<float>(),
                                grad_x.mutable_data_ptr<float>(), work.mutable_data_ptr<float>()};
  run_with_scratch(RC_PICK_WIDE(series_backward), args, plan.first_units(), args.scratch());
  return {grad_x, work};
}

// Its arguments are those that gave `work`; the values of x do not matter.
Tensor conv_exp_series_gradient(const Tensor& work, const Tensor& x, int64_t degree, int64_t tile) {
  check(degree >= 1 && degree <= SeriesArgs::kMaxDegree, "degree: got ", degree, ", want 1 to ",
        SeriesArgs::kMaxDegree);
  const WinogradGradientPlan plan = gradient_plan_of(shape_with(x, tile), degree);
  check(!work.is_cuda() && work.scalar_type() == ScalarType::Float && work.dim() == 1 &&
            work.is_contiguous() && work.size(0) == plan.work(),
        "work: got ", shape_of(work), ", want [", plan.work(),
        "], what conv_exp_series_backward returns for x ", shape_of(x));
  const int64_t c = x.size(1);
  Tensor grad = empty_on(x, {c, c, 3, 3}, {9 * c, 9, 3, 1}, ScalarType::Float);
  sum_filter_gradient({plan, true, work.const_data_ptr<float>(), grad.mutable_data_ptr<float>()});
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "conv_exp_update(Tensor z, Tensor? a, Tensor? b, Tensor? total, float alpha, float beta, "
      "float gamma, float total_scale, float delta, Tensor(a!) out, Tensor(b!)? total_out) -> ()");
  m.def("conv_exp_pack(Tensor kernel, int tile) -> Tensor");
  m.def(
      "conv_exp_series(Tensor x, Tensor packed, float[] coefficients, float first, float step, "
      "float carry, int tile, bool keep) -> (Tensor, Tensor)");
  m.def(
      "conv_exp_series_backward(Tensor grad, Tensor x, Tensor packed, Tensor? kept, "
      "float[] coefficients, float first, float step, float carry, int tile) -> "
      "(Tensor, Tensor)");
  m.def("conv_exp_series_gradient(Tensor work, Tensor x, int degree, int tile) -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("conv_exp_update", TORCH_BOX(&conv_exp_update));
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("conv_exp_pack", TORCH_BOX(&conv_exp_pack));
  m.impl("conv_exp_series", TORCH_BOX(&conv_exp_series));
  m.impl("conv_exp_series_backward", TORCH_BOX(&conv_exp_series_backward));
  m.impl("conv_exp_series_gradient", TORCH_BOX(&conv_exp_series_gradient));
}

}  // namespace robustcore::lipschitz
