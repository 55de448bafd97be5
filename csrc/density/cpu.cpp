#include <torch/csrc/stable/ops.h>

#include "common/isa.h"
#include "density/launch.h"
#include "density/simd.h"

namespace robustcore::density {
namespace {

const SimdKernels& kernels() {
#if defined(RC_HAVE_X86)
  switch (active_isa()) {
    case Isa::kAvx512:
      return simd_avx512;
    case Isa::kAvx2:
      return simd_avx2;
    case Isa::kBaseline:
      break;
  }
#endif
  return simd_baseline;
}

// Threads are worth their wake-up from about this much work on.
constexpr int64_t kGrainElements = 16384;

template <class Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t rows,
         int64_t elements) {
  if (rows == 0) return;
  torch::stable::parallel_for(0, rows, ceil_div(kGrainElements, elements + 1),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace

void lse_cpu(const LseArgs& args) {
  run(kernels().lse, args, args.logits.rows, args.logits.classes);
}

void lse_grad_cpu(const LseGradArgs& args) {
  run(kernels().lse_grad, args, args.logits.rows, args.logits.classes);
}

void lse_hess_cpu(const LseHessArgs& args) {
  run(kernels().lse_hess, args, args.logits.rows, args.logits.classes);
}

void norm_cpu(const NormArgs& args) {
  run(kernels().norm, args, args.rows, args.elements);
}

void norm_grad_cpu(const NormGradArgs& args) {
  run(kernels().norm_grad, args, args.rows, args.elements);
}

}  // namespace robustcore::density
