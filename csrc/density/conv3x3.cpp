// Schemas and checks of the 3 x 3 convolution and its filter's gradient, on the CPU. Nothing is
// allocated or written before every check has passed.
#include "density/conv3x3.h"

#include "common/cpu.h"
#include "common/tensor.h"

namespace robustcore::density {
namespace {

void check_images(const char* name, const Tensor& t) {
  check(t.dim() == 4 && t.numel() > 0, name, ": got shape ", shape_of(t),
        ", want [N, C, H, W], not empty");
  check(!t.is_cuda() && t.scalar_type() == ScalarType::Float, name, ": got ",
        name_of(t.scalar_type()), t.is_cuda() ? " on a GPU" : "", ", want float32 on the CPU");
  check(t.is_contiguous() || channels_last(t), name, ": want it contiguous or channels_last");
  check(winograd_block() > 0, "conv3x3: this processor has no kernel for it");
}

WinogradShape shape_with(const Tensor& x, int64_t out, int64_t pad_y, int64_t pad_x) {
  check(pad_y >= 0 && pad_x >= 0, "padding: got (", pad_y, ", ", pad_x, "), want no negative");
  WinogradShape shape{x.size(0), x.size(1), out, x.size(2), x.size(3), pad_y, pad_x, 0};
  check(shape.out_height() > 0 && shape.out_width() > 0, "x: got shape ", shape_of(x),
        ", which 3 x 3 does not fit in at this padding");
  // The tile with fewer products; a large one wastes more of them on small images.
  const auto products = [&](int64_t tile) {
    return ceil_div(shape.out_height(), tile) * ceil_div(shape.out_width(), tile) * (tile + 2) *
           (tile + 2);
  };
  shape.tile = products(4) < products(2) ? 4 : 2;
  return shape;
}

const float* bias_data(const Tensor& bias, int64_t out) {
  check(bias.dim() == 1 && bias.size(0) == out && bias.is_contiguous() &&
            bias.scalar_type() == ScalarType::Float && !bias.is_cuda(),
        "bias: got ", name_of(bias.scalar_type()), " of shape ", shape_of(bias),
        ", want contiguous float32 [", out, "]");
  return bias.const_data_ptr<float>();
}

Tensor conv3x3(const Tensor& x,             // [N, in, H, W]
               const Tensor& weight,        // [out, in, 3, 3], or [in, out, 3, 3] transposed
               const OptionalTensor& bias,  // [out]
               int64_t pad_y, int64_t pad_x, bool transposed) {
  check_images("x", x);
  check(weight.dim() == 4 && weight.size(transposed ? 0 : 1) == x.size(1) && weight.size(2) == 3 &&
            weight.size(3) == 3 && weight.scalar_type() == ScalarType::Float && !weight.is_cuda() &&
            weight.is_contiguous(),
        "weight: got ", name_of(weight.scalar_type()), " of shape ", shape_of(weight),
        ", want contiguous float32 for the ", x.size(1), " channels of x");
  const WinogradShape s = shape_with(x, weight.size(transposed ? 1 : 0), pad_y, pad_x);
  const int64_t block = winograd_block();
  Conv3x3Args args{WinogradPlan(s, block, block / 2, block), channels_last(x), nullptr, nullptr,
                   bias ? bias_data(*bias, s.out) : nullptr, nullptr};
  const std::vector<int64_t> sizes{s.images, s.out, s.out_height(), s.out_width()};
  Tensor y = empty_on(x, sizes, dense_strides(sizes, args.channels_last), ScalarType::Float);
  Tensor packed = empty_on(x, {args.plan.filter()}, {1}, ScalarType::Float);
  if (s.out == 0) return y;
  pack_filter({s.in, s.out, args.plan.in, s.tile, transposed, weight.const_data_ptr<float>(),
               packed.mutable_data_ptr<float>()});
  args.x = x.const_data_ptr<float>();
  args.filter = packed.const_data_ptr<float>();
  args.y = y.mutable_data_ptr<float>();
  run_with_scratch(RC_PICK_WIDE(conv3x3), args, args.plan.groups, args.scratch());
  return y;
}

Tensor conv3x3_weight_gradient(const Tensor& grad,  // [N, out, *]
                               const Tensor& x,     // [N, in, H, W]
                               int64_t pad_y, int64_t pad_x) {
  check_images("x", x);
  check_images("grad", grad);
  const WinogradShape s = shape_with(x, grad.size(1), pad_y, pad_x);
  check(grad.size(0) == s.images && grad.size(2) == s.out_height() && grad.size(3) == s.out_width(),
        "grad: got shape ", shape_of(grad), ", want [", s.images, ", *, ", s.out_height(), ", ",
        s.out_width(), "] for x ", shape_of(x));
  const int64_t block = winograd_block();
  const WinogradGradientPlan plan(s, block, block / 2, 1);
  Tensor out = empty_on(x, {s.out, s.in, 3, 3}, {9 * s.in, 9, 3, 1}, ScalarType::Float);
  Tensor work = empty_on(x, {plan.work()}, {1}, ScalarType::Float);
  float* data = work.mutable_data_ptr<float>();
  const Conv3x3FactorsArgs args{plan,
                                channels_last(x),
                                channels_last(grad),
                                x.const_data_ptr<float>(),
                                grad.const_data_ptr<float>(),
                                data};
  run_with_scratch(RC_PICK_WIDE(conv3x3_factors), args, plan.first_units(), args.scratch());
  sum_filter_gradient({plan, false, data, out.mutable_data_ptr<float>()});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "conv3x3(Tensor x, Tensor weight, Tensor? bias, SymInt pad_y, SymInt pad_x, bool transposed) "
      "-> Tensor");
  m.def("conv3x3_weight_gradient(Tensor grad, Tensor x, SymInt pad_y, SymInt pad_x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
  m.impl("conv3x3_weight_gradient", TORCH_BOX(&conv3x3_weight_gradient));
}

}  // namespace robustcore::density
