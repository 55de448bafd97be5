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

void pixel_masks_cpu(const PixelMaskArgs& args) {
  const int64_t masks = args.images * args.samples;
  run_units(RC_ACTIVE_KERNELS.pixel_masks, args, masks, masks * (args.pixels / 8 + args.kept * 4));
}

void patch_masks_cpu(const PatchMaskArgs& args) {
  run_units(RC_ACTIVE_KERNELS.patch_masks, args, args.samples,
            args.samples * args.height * args.width);
}

void select_cpu(const SelectArgs& args) {
  run_units(RC_ACTIVE_KERNELS.select, args, SelectTiling(args).units(args),
            args.images * args.samples * args.channels * args.pixels);
}

void kept_sums_cpu(const KeptSumsArgs& args) {
  run_units(RC_ACTIVE_KERNELS.kept_sums, args, kept_sums_units(args),
            args.images * args.samples * args.channels * args.pixels);
}

}  // namespace robustcore::smoothing
