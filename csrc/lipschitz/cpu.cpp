#include <new>

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

// 64-byte aligned floats: a vector store then touches one cache line.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(::operator new(floats * sizeof(float), kAlignment))) {}
  ~Scratch() {
    ::operator delete(data_, kAlignment);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  float* data_;
};

SeriesPlan plan_of(const SeriesArgs& args, SeriesPlan::Pass pass) {
  return SeriesPlan(args, RC_ACTIVE_KERNELS.series_block, pass);
}

SeriesPlan backward_plan_of(const SeriesArgs& args) {
  return plan_of(args, args.kept ? SeriesPlan::kBackward : SeriesPlan::kRecompute);
}

template <class Args>
void run_series(void (*kernel)(const Args&, float*, int64_t, int64_t), const Args& args,
                int64_t units, int64_t scratch_floats) {
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_floats);
    kernel(args, scratch.data(), begin, end);
  });
}

}  // namespace

std::optional<SeriesSizes> series_sizes(const SeriesArgs& args) {
  if (RC_ACTIVE_KERNELS.series_block == 0) return std::nullopt;
  const SeriesPlan plan = backward_plan_of(args);
  return SeriesSizes{plan.sums, plan.work()};
}

void series_cpu(const SeriesArgs& args) {
  const SeriesPlan plan = plan_of(args, SeriesPlan::kForward);
  run_series(RC_ACTIVE_KERNELS.series, args, plan.groups, plan.scratch());
}

void series_backward_cpu(const SeriesBackwardArgs& args) {
  const SeriesPlan plan = backward_plan_of(args.series);
  run_series(RC_ACTIVE_KERNELS.series_backward, args, plan.backward_units(), plan.scratch());
}

void series_gradient_cpu(const SeriesBackwardArgs& args) {
  const SeriesPlan plan = backward_plan_of(args.series);
  run_series(RC_ACTIVE_KERNELS.series_gradient, args, plan.gradient_units(),
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
