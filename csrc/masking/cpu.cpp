#include "common/cpu_launch.h"
#include "masking/launch.h"
#include "masking/simd.h"

namespace robustcore::masking {

void fill_cpu(const FillArgs& args) {
  run_units(RC_ACTIVE_KERNELS.fill, args, FillTiling(args).units(args),
            args.images * args.channels * args.rows * args.columns * (args.iters + 1));
}

void epilogue_cpu(const EpilogueArgs& args) {
  run_units(RC_ACTIVE_KERNELS.epilogue, args, epilogue_units(args),
            args.images * args.channels * args.rows * args.columns);
}

}  // namespace robustcore::masking
