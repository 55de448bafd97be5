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

SeriesPlan plan_of(const SeriesArgs& args, SeriesPlan::Pass pass) {
  return SeriesPlan(args, RC_ACTIVE_KERNELS.series_block, pass);
}

SeriesPlan backward_plan_of(const SeriesArgs& args) {
  return plan_of(args, args.kept ? SeriesPlan::kBackward : SeriesPlan::kRecompute);
}

}  // namespace

std::optional<SeriesSizes> series_sizes(const SeriesArgs& args) {
  if (RC_ACTIVE_KERNELS.series_block == 0) return std::nullopt;
  const SeriesPlan plan = backward_plan_of(args);
  return SeriesSizes{plan.sums, plan.work()};
}

void series_cpu(const SeriesArgs& args) {
  const SeriesPlan plan = plan_of(args, SeriesPlan::kForward);
  run_with_scratch(RC_ACTIVE_KERNELS.series, args, plan.groups, plan.scratch());
}

void series_backward_cpu(const SeriesBackwardArgs& args) {
  const SeriesPlan plan = backward_plan_of(args.series);
  run_with_scratch(RC_ACTIVE_KERNELS.series_backward, args, plan.backward_units(), plan.scratch());
}

void series_gradient_cpu(const SeriesBackwardArgs& args) {
  const SeriesPlan plan = backward_plan_of(args.series);
  run_with_scratch(RC_ACTIVE_KERNELS.series_gradient, args, plan.gradient_units(),
                   plan.gradient_scratch());
}

void series_kernel_cpu(const SeriesKernelArgs& args) {
  const int64_t block = RC_ACTIVE_KERNELS.series_block;
  const int64_t padded = ceil_div(args.channels, block) * block;
  run_units(RC_ACTIVE_KERNELS.series_kernel, args, padded, 36 * padded * padded);
}

void update_cpu(const UpdateArgs& args) {
  run_units(RC_ACTIVE_KERNELS.update, args, update_units(args), args.count);
}

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
