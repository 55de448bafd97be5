#include "common/cpu_launch.h"
#include "density/launch.h"
#include "density/simd.h"

namespace robustcore::density {

void lse_cpu(const LseArgs& args) {
  run_units(RC_ACTIVE_KERNELS.lse, args, args.logits.rows, args.logits.rows * args.logits.classes);
}

void lse_grad_cpu(const LseGradArgs& args) {
  run_units(RC_ACTIVE_KERNELS.lse_grad, args, args.logits.rows,
            args.logits.rows * args.logits.classes);
}

void lse_hess_cpu(const LseHessArgs& args) {
  run_units(RC_ACTIVE_KERNELS.lse_hess, args, args.logits.rows,
            args.logits.rows * args.logits.classes);
}

void norm_cpu(const NormArgs& args) {
  run_units(RC_ACTIVE_KERNELS.norm, args, args.rows, args.rows * args.elements);
}

void norm_grad_cpu(const NormGradArgs& args) {
  run_units(RC_ACTIVE_KERNELS.norm_grad, args, args.rows, args.rows * args.elements);
}

void norm_hess_cpu(const NormHessArgs& args) {
  run_units(RC_ACTIVE_KERNELS.norm_hess, args, args.rows, args.rows * args.elements);
}

}  // namespace robustcore::density
