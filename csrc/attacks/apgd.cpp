// Nothing is written before every check has passed.
#include "attacks/apgd.h"

#include <algorithm>

#include "attacks/checks.h"
#include "attacks/watch_args.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void apgd_step_cpu(const ApgdArgs& args) {
  // Twice the floats hold as many doubles.
  run_with_scratch(RC_PICK(apgd_step), args, args.step.rows, 2 * scratch_elements(args.step),
                   std::max<int64_t>(args.step.elements, 1));
}

// The step from x over `previous`, all of them as dense as x.
StepArgs step_args(const ApgdArgs& args, const Tensor& x, const Tensor& grad, const Tensor& x0,
                   const Tensor& previous, int64_t norm, double eps) {
  StepArgs step{};
  step.rows = args.watch.rows, step.elements = args.watch.elements, step.channels = 1;
  step.norm = norm_of(norm);
  check(has_momentum(step.norm), "norm: got ", norm, ", want 0 or 1, linf or l2");
  check_eps(step.norm, eps);
  step.eps.value = eps;
  const Box box = box_within(0.0, 1.0, args.watch.grad.dtype);
  step.low = box.low, step.high = box.high;
  // Rows of linf are elements side by side, in whatever order all images lie; sums have an order.
  const auto view = [&](const Tensor& t) {
    if (step.norm == Norm::kL2) return strided_view("x", t, x.sizes());
    StridedView flat = args.watch.grad;
    flat.data = t.const_data_ptr();
    return flat;
  };
  step.x = view(x), step.grad = view(grad), step.x0 = view(x0);
  step.previous = step.place = view(previous);
  step.out = previous.mutable_data_ptr();
  return step;
}

void apgd_step(Tensor x,                                  // [N, *D]
               const OptionalTensor& shown,               // [N, *D]
               const Tensor& grad, const Tensor& x0,      // [N, *D]
               Tensor previous,                           // [N, *D]
               Tensor loss, const Tensor& ahead,          // [N]
               const OptionalTensor& counts,              // [N] bool
               Tensor best, Tensor best_grad,             // [N, *D]
               Tensor best_loss,                          // [N]
               Tensor found, Tensor fooled, Tensor zero,  // [N] bool
               Tensor nan_grad, Tensor nan_logits,        // [N] bool
               Tensor age,                                // [N] int64
               Tensor last_loss, Tensor step_size,        // [N]
               Tensor rises, Tensor checked,              // [N]
               Tensor cut,                                // [N] bool
               const Tensor& widths,                      // [ages] int64
               int64_t norm, double eps, double rho, double momentum) {
  ApgdArgs args{};
  const Tensor& seen = shown ? *shown : x;
  check_laid_out("x", x, x), check_laid_out("shown", seen, x);
  check_laid_out("x0", x0, x), check_laid_out("previous", previous, x);
  args.watch = watch_args({seen, grad, loss, ahead, counts, best, best_grad, best_loss, found,
                           fooled, zero, nan_grad, nan_logits, age});
  args.step = step_args(args, x, grad, x0, previous, norm, eps);
  args.x = x.mutable_data_ptr();
  const ScalarType type = arithmetic_type("x", x);
  args.last_loss = values_of("last_loss", last_loss, x, type);
  args.step_size = values_of("step_size", step_size, x, type);
  args.rises = values_of("rises", rises, x, type);
  args.checked = values_of("checked", checked, x, type);
  args.cut = static_cast<bool*>(values_of("cut", cut, x, ScalarType::Bool));
  check(widths.dim() == 1, "widths: got shape ", shape_of(widths), ", want [ages]");
  check_vector("widths", widths, widths.size(0), ScalarType::Long, x, "x");
  check(widths.is_contiguous(), "widths: has to be contiguous");
  args.widths = widths.const_data_ptr<int64_t>(), args.ages = widths.size(0);
  check(rho >= 0 && rho <= 1, "rho: got ", rho, ", want a share in [0, 1]");
  check(momentum >= 0 && momentum <= 1, "momentum: got ", momentum, ", want a number in [0, 1]");
  args.rho = rho, args.momentum = momentum;
  if (args.step.rows > 0) run(x, args, apgd_step_cpu, RC_CUDA(apgd_step_cuda));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "apgd_step(Tensor(a!) x, Tensor? shown, Tensor grad, Tensor x0, Tensor(b!) previous, "
      "Tensor(c!) loss, Tensor ahead, Tensor? counts, Tensor(d!) best, Tensor(e!) best_grad, "
      "Tensor(f!) best_loss, Tensor(g!) found, Tensor(h!) fooled, Tensor(i!) zero, "
      "Tensor(j!) nan_grad, Tensor(k!) nan_logits, Tensor(l!) age, Tensor(m!) last_loss, "
      "Tensor(n!) step_size, Tensor(o!) rises, Tensor(p!) checked, Tensor(q!) cut, Tensor widths, "
      "int norm, float eps, float rho, float momentum) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("apgd_step", TORCH_BOX(&apgd_step));
}

}  // namespace robustcore::attacks
