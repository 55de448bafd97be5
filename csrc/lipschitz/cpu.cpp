#include "common/cpu_launch.h"
#include "lipschitz/launch.h"
#include "lipschitz/simd.h"

namespace robustcore::lipschitz {
namespace {

template <class Args>
void run_pairs(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  const PairShape& shape = args.shape;
  run_units(kernel, args, PairTiling(shape).units(shape), 2 * shape.rows * shape.run());
}

}  // namespace

void skew_cpu(const SkewArgs& args) {
  run_units(RC_ACTIVE_KERNELS.skew, args, skew_units(args),
            args.channels * args.channels * args.taps);
}

void maxmin_cpu(const MaxMinArgs& args) {
  run_pairs(RC_ACTIVE_KERNELS.maxmin, args);
}

void swap_cpu(const SwapArgs& args) {
  run_pairs(RC_ACTIVE_KERNELS.swap, args);
}

void map_cpu(Map map, const MapArgs& args) {
  run_pairs(RC_ACTIVE_KERNELS.map[static_cast<int>(map)], args);
}

void map_backward_cpu(Map map, const MapBackwardArgs& args) {
  run_pairs(RC_ACTIVE_KERNELS.map_backward[static_cast<int>(map)], args);
}

}  // namespace robustcore::lipschitz
