#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "common/isa.h"
#include "smoothing/launch.h"
#include "smoothing/simd.h"

namespace robustcore::smoothing {
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
void run(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t units,
         int64_t elements) {
  if (units == 0) return;
  const int64_t per_unit = elements / units + 1;
  torch::stable::parallel_for(0, units, ceil_div(kGrainElements, per_unit),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace

void noise_cpu(const NoiseArgs& args) {
  run(kernels().noise, args, NoiseTiling(args).units(args),
      args.images * args.samples * args.elements);
}

void sums_cpu(const SumsArgs& args) {
  run(kernels().sums, args, sums_units(args), args.images * args.samples * args.elements);
}

void votes_cpu(const VotesArgs& args) {
  std::memset(args.counts, 0, args.images * args.classes * sizeof(int64_t));
  run(kernels().votes, args, votes_units(args), args.images * args.samples * args.classes);
}

}  // namespace robustcore::smoothing
