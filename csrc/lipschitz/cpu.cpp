#include <torch/csrc/stable/ops.h>

#include "common/isa.h"
#include "lipschitz/launch.h"
#include "lipschitz/simd.h"

namespace robustcore::lipschitz {
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
constexpr int64_t kGrainElements = 32768;

template <class Args>
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t units,
         int64_t elements) {
  if (units == 0) return;
  const int64_t per_unit = elements / units + 1;
  torch::stable::parallel_for(0, units, ceil_div(kGrainElements, per_unit),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

template <class Args>
void run_pairs(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  const PairShape& shape = args.shape;
  run(kernel, args, PairTiling(shape).units(shape), 2 * shape.rows * shape.run());
}

}  // namespace

void update_cpu(const UpdateArgs& args) {
  run(kernels().update, args, update_units(args), args.count);
}

void skew_cpu(const SkewArgs& args) {
  run(kernels().skew, args, skew_units(args), args.channels * args.channels * args.taps);
}

void maxmin_cpu(const MaxMinArgs& args) {
  run_pairs(kernels().maxmin, args);
}

void swap_cpu(const SwapArgs& args) {
  run_pairs(kernels().swap, args);
}

void map_cpu(Map map, const MapArgs& args) {
  run_pairs(kernels().map[static_cast<int>(map)], args);
}

void map_backward_cpu(Map map, const MapBackwardArgs& args) {
  run_pairs(kernels().map_backward[static_cast<int>(map)], args);
}

}  // namespace robustcore::lipschitz
