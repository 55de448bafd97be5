// Nothing is written before every check has passed.
#include "attacks/watch.h"

#include <algorithm>

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
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
  check(x.dim() >= 1, "x: got a 0-d tensor, want [N, *D]");
  WatchArgs args{};
  args.rows = x.size(0), args.elements = elements_of(x, 1);
  args.is_double = floating_dtype("x", x.scalar_type()) == DType::kFloat64;
  args.element_size = x.element_size();
  const bool last = x.dim() == 4 && channels_last(x);
  const auto dense = [&](const char* name, const Tensor& t) {
    if (&t != &x) check_like(name, t, x, "x");
    check(last ? channels_last(t) : t.is_contiguous(), name, ": has to be ",
          last ? "channels_last as x" : "contiguous");
  };
  dense("x", x);
  args.x = x.const_data_ptr();
  if (grad) {
    dense("grad", *grad);
    // In whatever order all lie.
    args.grad.data = grad->const_data_ptr();
    args.grad.dtype = floating_dtype("grad", grad->scalar_type());
    args.grad.dims = 1, args.grad.image_stride = args.grad.sizes[0] = args.elements;
    args.grad.strides[0] = 1;
  }
  check(!best_grad || (grad && best), "best_grad: goes with grad and best");
  if (best) dense("best", *best), args.best = best->mutable_data_ptr();
  if (best_grad) dense("best_grad", *best_grad), args.best_grad = best_grad->mutable_data_ptr();
  const auto values = [&](const char* name, const Tensor& t, ScalarType type) {
    check_vector(name, t, args.rows, type, x, "x");
    check(t.is_contiguous(), name, ": has to be contiguous");
    return t.mutable_data_ptr();
  };
  const auto flags = [&](const char* name, const Tensor& t) {
    return static_cast<bool*>(values(name, t, ScalarType::Bool));
  };
  const ScalarType type = arithmetic_type("x", x);
  args.loss = values("loss", loss, type), args.ahead = values("ahead", ahead, type);
  args.best_loss = values("best_loss", best_loss, type);
  if (counts) args.counts = flags("counts", *counts);
  args.found = flags("found", found), args.fooled = flags("fooled", fooled);
  args.zero = flags("zero", zero);
  args.nan_grad = flags("nan_grad", nan_grad), args.nan_logits = flags("nan_logits", nan_logits);
  args.age = static_cast<int64_t*>(values("age", age, ScalarType::Long));
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
