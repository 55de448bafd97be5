#include "smoothing/mean_softmax.h"

#include "common/cpu.h"
#include "common/device.h"
#include "common/row_checks.h"

namespace robustcore::smoothing {
namespace {

// As run_units, with scratch of so many values in the arithmetic type.
template <class Args>
void run_images(void (*kernel)(const Args&, float*, int64_t, int64_t), const Args& args,
                const MeanSoftmaxArgs& forward, int64_t scratch) {
  const int64_t floats = forward.logits.dtype == DType::kFloat64 ? 2 * scratch : scratch;
  const int64_t grain = ceil_div(kGrainElements, forward.copies * forward.classes);
  torch::stable::parallel_for(0, forward.images, grain, [&](int64_t begin, int64_t end) {
    const Scratch values(floats);
    kernel(args, values.data(), begin, end);
  });
}

void mean_softmax_cpu(const MeanSoftmaxArgs& args) {
  run_images(RC_PICK(mean_softmax), args, args, args.copies * args.classes);
}

void mean_softmax_backward_cpu(const MeanSoftmaxBackwardArgs& args) {
  run_images(RC_PICK(mean_softmax_backward), args, args.forward, args.forward.classes);
}

void mean_softmax_double_backward_cpu(const MeanSoftmaxDoubleBackwardArgs& args) {
  const MeanSoftmaxArgs& forward = args.backward.forward;
  run_units(RC_PICK(mean_softmax_double_backward), args, forward.images, forward.elements());
}

MeanSoftmaxArgs forward_args(const Tensor& logits,  // [B, m, K]
                             double scale) {
  check(logits.dim() == 3 && logits.size(1) >= 1 && logits.size(2) >= 1, "logits: got shape ",
        shape_of(logits), ", want [B, m, K] with at least one copy and one class");
  check(scale > 0 && scale - scale == 0, "scale: got ", scale, ", want a finite number above 0");
  MeanSoftmaxArgs args{};
  args.images = logits.size(0), args.copies = logits.size(1), args.classes = logits.size(2);
  args.logits = strided_view("logits", logits, logits.sizes(), /*has_samples=*/true);
  args.scale = scale;
  return args;
}

Tensor new_like(const Tensor& logits, const std::vector<int64_t>& sizes) {
  return empty_on(logits, sizes, dense_strides(sizes, false), arithmetic_type("logits", logits));
}

Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// The data of a dense tensor in the arithmetic type of the logits.
void* data_of(const char* name, const Tensor& t, const Tensor& logits,
              const std::vector<int64_t>& sizes) {
  const auto got = t.sizes();
  const ScalarType type = arithmetic_type("logits", logits);
  check(std::equal(got.begin(), got.end(), sizes.begin(), sizes.end()) && t.scalar_type() == type &&
            t.is_contiguous(),
        name, ": got ", name_of(t.scalar_type()), " of shape ", shape_of(t), ", want a contiguous ",
        name_of(type), " tensor beside logits ", shape_of(logits));
  check_same_device(name, t, logits, "logits");
  return const_cast<void*>(t.const_data_ptr());
}

std::tuple<Tensor, Tensor, Tensor> mean_softmax(const Tensor& logits,  // [B, m, K]
                                                double scale) {
  MeanSoftmaxArgs args = forward_args(logits, scale);
  Tensor log_mean = new_like(logits, {args.images, args.classes});
  Tensor mean_log = new_like(logits, {args.images, args.classes});
  Tensor rows = new_like(logits, {args.images, 3, args.copies});
  args.log_mean = log_mean.mutable_data_ptr();
  args.mean_log = mean_log.mutable_data_ptr();
  args.rows = rows.mutable_data_ptr();
  if (args.images > 0) run(logits, args, mean_softmax_cpu, RC_CUDA(mean_softmax_cuda));
  return {log_mean, mean_log, rows};
}

MeanSoftmaxBackwardArgs backward_args(const Tensor& grad_log_mean,  // [B, K]
                                      const Tensor& grad_mean_log,  // [B, K]
                                      const Tensor& logits,         // [B, m, K]
                                      const Tensor& log_mean,       // [B, K]
                                      const Tensor& rows,           // [B, 3, m]
                                      double scale) {
  MeanSoftmaxBackwardArgs args{};
  args.forward = forward_args(logits, scale);
  const int64_t images = args.forward.images, classes = args.forward.classes;
  args.forward.log_mean = data_of("log_mean", log_mean, logits, {images, classes});
  args.forward.rows = data_of("rows", rows, logits, {images, 3, args.forward.copies});
  args.grad_log_mean = data_of("grad_log_mean", grad_log_mean, logits, {images, classes});
  args.grad_mean_log = data_of("grad_mean_log", grad_mean_log, logits, {images, classes});
  return args;
}

Tensor mean_softmax_backward(const Tensor& grad_log_mean, const Tensor& grad_mean_log,
                             const Tensor& logits, const Tensor& log_mean, const Tensor& rows,
                             double scale) {
  const Tensor dense_log_mean = dense(log_mean), dense_rows = dense(rows);
  const Tensor first = dense(grad_log_mean), second = dense(grad_mean_log);
  MeanSoftmaxBackwardArgs args =
      backward_args(first, second, logits, dense_log_mean, dense_rows, scale);
  const MeanSoftmaxArgs& forward = args.forward;
  Tensor grad = new_like(logits, {forward.images, forward.copies, forward.classes});
  args.grad = grad.mutable_data_ptr();
  if (forward.images > 0) {
    run(logits, args, mean_softmax_backward_cpu, RC_CUDA(mean_softmax_backward_cuda));
  }
  return grad;
}

std::tuple<Tensor, Tensor, Tensor> mean_softmax_double_backward(const Tensor& v,  // [B, m, K]
                                                                const Tensor& grad_log_mean,
                                                                const Tensor& grad_mean_log,
                                                                const Tensor& logits,
                                                                const Tensor& log_mean,
                                                                const Tensor& rows, double scale) {
  const Tensor dense_log_mean = dense(log_mean), dense_rows = dense(rows), dense_v = dense(v);
  const Tensor first = dense(grad_log_mean), second = dense(grad_mean_log);
  MeanSoftmaxDoubleBackwardArgs args{};
  args.backward = backward_args(first, second, logits, dense_log_mean, dense_rows, scale);
  const MeanSoftmaxArgs& forward = args.backward.forward;
  const std::vector<int64_t> sizes{forward.images, forward.copies, forward.classes};
  args.v = data_of("v", dense_v, logits, sizes);
  Tensor second_log_mean = new_like(logits, {forward.images, forward.classes});
  Tensor second_mean_log = new_like(logits, {forward.images, forward.classes});
  Tensor second_logits = new_like(logits, sizes);
  Tensor sums = new_like(logits, {forward.images, 2, forward.copies});
  args.second_log_mean = second_log_mean.mutable_data_ptr();
  args.second_mean_log = second_mean_log.mutable_data_ptr();
  args.second = second_logits.mutable_data_ptr();
  args.sums = sums.mutable_data_ptr();
  if (forward.images > 0) {
    run(logits, args, mean_softmax_double_backward_cpu, RC_CUDA(mean_softmax_double_backward_cuda));
  }
  return {second_log_mean, second_mean_log, second_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("mean_softmax(Tensor logits, float scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "mean_softmax_backward(Tensor grad_log_mean, Tensor grad_mean_log, Tensor logits, "
      "Tensor log_mean, Tensor rows, float scale) -> Tensor");
  m.def(
      "mean_softmax_double_backward(Tensor v, Tensor grad_log_mean, Tensor grad_mean_log, "
      "Tensor logits, Tensor log_mean, Tensor rows, float scale) -> (Tensor, Tensor, Tensor)");
}

RC_LIBRARY_IMPL(m) {
  m.impl("mean_softmax", TORCH_BOX(&mean_softmax));
  m.impl("mean_softmax_backward", TORCH_BOX(&mean_softmax_backward));
  m.impl("mean_softmax_double_backward", TORCH_BOX(&mean_softmax_double_backward));
}

}  // namespace robustcore::smoothing
