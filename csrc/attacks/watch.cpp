// Nothing is written before every check has passed.
#include "attacks/watch.h"

#include <algorithm>

#include "attacks/checks.h"
#include "attacks/watch_args.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {

void check_laid_out(const char* name, const Tensor& t, const Tensor& x) {
  if (&t != &x) check_like(name, t, x, "x");
  const bool last = x.dim() == 4 && channels_last(x);
  check(last ? channels_last(t) : t.is_contiguous(), name, ": has to be ",
        last ? "channels_last as x" : "contiguous");
}

void* values_of(const char* name, const Tensor& t, const Tensor& x, ScalarType type) {
  check_vector(name, t, x.size(0), type, x, "x");
  check(t.is_contiguous(), name, ": has to be contiguous");
  return t.mutable_data_ptr();
}

WatchArgs watch_args(const WatchTensors& from) {
  const Tensor& x = from.x;
  check(x.dim() >= 1, "x: got a 0-d tensor, want [N, *D]");
  WatchArgs args{};
  args.rows = x.size(0), args.elements = elements_of(x, 1);
  args.is_double = floating_dtype("x", x.scalar_type()) == DType::kFloat64;
  args.element_size = x.element_size();
  const auto image = [&](const char* name, const Tensor& t) {
    check_laid_out(name, t, x);
    return t.mutable_data_ptr();
  };
  args.x = image("x", x);
  if (from.grad) {
    // In whatever order all lie.
    args.grad.data = image("grad", *from.grad);
    args.grad.dtype = floating_dtype("grad", from.grad->scalar_type());
    args.grad.dims = 1, args.grad.image_stride = args.grad.sizes[0] = args.elements;
    args.grad.strides[0] = 1;
  }
  check(!from.best_grad || (from.grad && from.best), "best_grad: goes with grad and best");
  if (from.best) args.best = image("best", *from.best);
  if (from.best_grad) args.best_grad = image("best_grad", *from.best_grad);
  const auto flags = [&](const char* name, const Tensor& t) {
    return static_cast<bool*>(values_of(name, t, x, ScalarType::Bool));
  };
  const ScalarType type = arithmetic_type("x", x);
  args.loss = values_of("loss", from.loss, x, type);
  args.ahead = values_of("ahead", from.ahead, x, type);
  args.best_loss = values_of("best_loss", from.best_loss, x, type);
  if (from.counts) args.counts = flags("counts", *from.counts);
  args.found = flags("found", from.found), args.fooled = flags("fooled", from.fooled);
  args.zero = flags("zero", from.zero);
  args.nan_grad = flags("nan_grad", from.nan_grad);
  args.nan_logits = flags("nan_logits", from.nan_logits);
  args.age = static_cast<int64_t*>(values_of("age", from.age, x, ScalarType::Long));
  return args;
}

namespace {

void attack_watch_cpu(const WatchArgs& args) {
  // Twice the floats hold as many doubles.
  run_with_scratch(RC_PICK(attack_watch), args, args.rows, 2 * args.elements,
                   std::max<int64_t>(args.elements, 1));
}

void attack_watch(const Tensor& x,                     // [N, *D]
                  const OptionalTensor& grad,          // [N, *D]
                  Tensor loss,                         // [N]
                  const Tensor& ahead,                 // [N]
                  const OptionalTensor& counts,        // [N] bool
                  const OptionalTensor& best,          // [N, *D]
                  const OptionalTensor& best_grad,     // [N, *D]
                  Tensor best_loss,                    // [N]
                  Tensor found, Tensor fooled,         // [N] bool
                  Tensor zero,                         // [N] bool
                  Tensor nan_grad, Tensor nan_logits,  // [N] bool
                  Tensor age) {                        // [N] int64
  const WatchArgs args = watch_args({x, grad, loss, ahead, counts, best, best_grad, best_loss,
                                     found, fooled, zero, nan_grad, nan_logits, age});
  if (args.rows > 0) run(x, args, attack_watch_cpu, RC_CUDA(attack_watch_cuda));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "attack_watch(Tensor x, Tensor? grad, Tensor(a!) loss, Tensor ahead, Tensor? counts, "
      "Tensor(b!)? best, Tensor(c!)? best_grad, Tensor(d!) best_loss, Tensor(e!) found, "
      "Tensor(f!) fooled, Tensor(g!) zero, Tensor(h!) nan_grad, Tensor(i!) nan_logits, "
      "Tensor(j!) age) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("attack_watch", TORCH_BOX(&attack_watch));
}

}  // namespace robustcore::attacks
