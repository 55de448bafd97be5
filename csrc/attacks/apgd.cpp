// Nothing is written before every check has passed.
#include "attacks/apgd.h"

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void apgd_update_cpu(const ApgdArgs& args) {
  run_units(RC_PICK(apgd_update), args, args.rows, args.rows * args.elements);
}

void apgd_update(Tensor x,             // [N, *D]
                 Tensor grad,          // [N, *D]
                 const Tensor& loss,   // [N]
                 Tensor best,          // [N, *D]
                 Tensor best_grad,     // [N, *D]
                 Tensor best_loss,     // [N]
                 Tensor last_loss,     // [N]
                 Tensor step_size,     // [N]
                 Tensor rises,         // [N]
                 Tensor checked,       // [N]
                 Tensor cut,           // [N] bool
                 const Tensor& width,  // [N] int64
                 double rho) {
  check(x.dim() >= 1, "x: got a 0-d tensor, want [N, *D]");
  ApgdArgs args{};
  args.rows = x.size(0), args.elements = elements_of(x, 1);
  args.is_double = floating_dtype("x", x.scalar_type()) == DType::kFloat64;
  args.element_size = x.element_size();
  const bool last = x.dim() == 4 && channels_last(x);
  const auto images = [&](const char* name, Tensor& t) {
    if (&t != &x) check_like(name, t, x, "x");
    check(last ? channels_last(t) : t.is_contiguous(), name, ": has to be ",
          last ? "channels_last as x" : "contiguous");
    return t.mutable_data_ptr();
  };
  const auto values = [&](const char* name, const Tensor& t) {
    check_vector(name, t, args.rows, arithmetic_type("x", x), x, "x");
    check(t.is_contiguous(), name, ": has to be contiguous");
    return t.mutable_data_ptr();
  };
  args.x = images("x", x), args.grad = images("grad", grad);
  args.best = images("best", best), args.best_grad = images("best_grad", best_grad);
  args.loss = values("loss", loss), args.best_loss = values("best_loss", best_loss);
  args.last_loss = values("last_loss", last_loss);
  args.step_size = values("step_size", step_size), args.rises = values("rises", rises);
  args.checked = values("checked", checked);
  check_vector("cut", cut, args.rows, ScalarType::Bool, x, "x");
  check(cut.is_contiguous(), "cut: has to be contiguous");
  args.cut = static_cast<bool*>(cut.mutable_data_ptr());
  args.width = indices_of("width", width, x, "x");
  check(rho >= 0 && rho <= 1, "rho: got ", rho, ", want a share in [0, 1]");
  args.rho = rho;
  if (args.rows > 0) run(x, args, apgd_update_cpu, RC_CUDA(apgd_update_cuda));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "apgd_update(Tensor(a!) x, Tensor(b!) grad, Tensor loss, Tensor(c!) best, "
      "Tensor(d!) best_grad, Tensor(e!) best_loss, Tensor(f!) last_loss, Tensor(g!) step_size, "
      "Tensor(h!) rises, Tensor(i!) checked, Tensor(j!) cut, Tensor width, float rho) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("apgd_update", TORCH_BOX(&apgd_update));
}

}  // namespace robustcore::attacks
