// Schemas and checks of the 3 x 3 convolution and its kernel's gradient, on the CPU. Nothing is
// allocated or written before every check has passed.
#include "common/tensor.h"
#include "density/launch.h"

namespace robustcore::density {
namespace {

void check_images(const char* name, const Tensor& t) {
  check(t.dim() == 4 && t.numel() > 0, name, ": got shape ", shape_of(t),
        ", want [N, C, H, W], not empty");
  check(!t.is_cuda() && t.scalar_type() == ScalarType::Float, name, ": got ",
        name_of(t.scalar_type()), t.is_cuda() ? " on a GPU" : "", ", want float32 on the CPU");
  check(t.is_contiguous() || channels_last(t), name, ": want it contiguous or channels_last");
  check(conv_block() > 0, "conv3x3: this processor has no kernel for it");
}

ConvShape shape_with(const Tensor& x, int64_t out, int64_t pad_y, int64_t pad_x) {
  check(pad_y >= 0 && pad_x >= 0, "padding: got (", pad_y, ", ", pad_x, "), want no negative");
  ConvShape shape{};
  shape.images = x.size(0), shape.in = x.size(1), shape.out = out;
  shape.height = x.size(2), shape.width = x.size(3);
  shape.pad_y = pad_y, shape.pad_x = pad_x;
  shape.x_is_last = channels_last(x);
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
  ConvArgs args{};
  args.shape = shape_with(x, weight.size(transposed ? 1 : 0), pad_y, pad_x);
  ConvShape& shape = args.shape;
  if (bias) {
    check(bias->dim() == 1 && bias->size(0) == shape.out && bias->is_contiguous() &&
              bias->scalar_type() == ScalarType::Float && !bias->is_cuda(),
          "bias: got ", name_of(bias->scalar_type()), " of shape ", shape_of(*bias),
          ", want contiguous float32 [", shape.out, "]");
    args.bias = bias->const_data_ptr<float>();
  }
  shape.y_is_last = shape.x_is_last;
  const std::vector<int64_t> sizes{shape.images, shape.out, shape.out_height(), shape.out_width()};
  Tensor y = empty_on(x, sizes, dense_strides(sizes, shape.y_is_last), ScalarType::Float);
  Tensor packed =
      empty_on(x, {ConvForwardPlan(shape, conv_block()).kernel()}, {1}, ScalarType::Float);
  if (shape.out == 0) return y;
  ConvKernelArgs kernel{shape.in,
                        shape.out,
                        shape.tile,
                        transposed,
                        weight.const_data_ptr<float>(),
                        packed.mutable_data_ptr<float>()};
  conv_kernel_cpu(kernel);
  args.x = x.const_data_ptr<float>();
  args.kernel = packed.const_data_ptr<float>();
  args.y = y.mutable_data_ptr<float>();
  conv_cpu(args);
  return y;
}

Tensor conv3x3_weight_gradient(const Tensor& grad,  // [N, out, *]
                               const Tensor& x,     // [N, in, H, W]
                               int64_t pad_y, int64_t pad_x) {
  check_images("x", x);
  check_images("grad", grad);
  ConvGradientArgs args{};
  args.shape = shape_with(x, grad.size(1), pad_y, pad_x);
  ConvShape& shape = args.shape;
  check(grad.size(0) == shape.images && grad.size(2) == shape.out_height() &&
            grad.size(3) == shape.out_width(),
        "grad: got shape ", shape_of(grad), ", want [", shape.images, ", *, ", shape.out_height(),
        ", ", shape.out_width(), "] for x ", shape_of(x));
  shape.y_is_last = channels_last(grad);
  Tensor out = empty_on(x, {shape.out, shape.in, 3, 3}, {9 * shape.in, 9, 3, 1}, ScalarType::Float);
  Tensor work = empty_on(x, {ConvGradientPlan(shape, conv_block()).work()}, {1}, ScalarType::Float);
  args.x = x.const_data_ptr<float>();
  args.grad = grad.const_data_ptr<float>();
  args.work = work.mutable_data_ptr<float>();
  args.grad_weight = out.mutable_data_ptr<float>();
  conv_gradient_cpu(args);
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
