#include <cstring>

#include "common/cpu_launch.h"
#include "smoothing/launch.h"
#include "smoothing/simd.h"

namespace robustcore::smoothing {

void noise_cpu(const NoiseArgs& args) {
  run_units(RC_ACTIVE_KERNELS.noise, args, NoiseTiling(args).units(args),
            args.images * args.samples * args.elements);
}

void sums_cpu(const SumsArgs& args) {
  run_units(RC_ACTIVE_KERNELS.sums, args, sums_units(args),
            args.images * args.samples * args.elements);
}

void votes_cpu(const VotesArgs& args) {
  std::memset(args.counts, 0, args.images * args.classes * sizeof(int64_t));
  run_units(RC_ACTIVE_KERNELS.votes, args, votes_units(args),
            args.images * args.samples * args.classes);
}

}  // namespace robustcore::smoothing
