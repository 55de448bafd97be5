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

}  // namespace

std::optional<SeriesSizes> series_sizes(const SeriesArgs& args) {
  const int64_t block = RC_ACTIVE_KERNELS.series_block;
  if (block == 0) return std::nullopt;
  const SeriesPlan plan(args, block, SeriesPlan::kForward);
  const int64_t floats = plan.patch * plan.padded * plan.padded;
  return SeriesSizes{floats, plan.chunks * floats, plan.chunks};
}

void series_cpu(const SeriesArgs& args) {
  const SimdKernels& kernels = RC_ACTIVE_KERNELS;
  const SeriesPlan plan(args, kernels.series_block, SeriesPlan::kForward);
  torch::stable::parallel_for(0, plan.groups, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(plan.scratch());
    kernels.series(args, scratch.data(), begin, end);
  });
}

void series_backward_cpu(const SeriesBackwardArgs& args) {
  const SimdKernels& kernels = RC_ACTIVE_KERNELS;
  const SeriesPlan plan(args.series, kernels.series_block,
                        args.series.kept ? SeriesPlan::kBackward : SeriesPlan::kRecompute);
  torch::stable::parallel_for(0, plan.chunks, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(plan.scratch());
    kernels.series_backward(args, scratch.data(), begin, end);
  });
}

void series_kernel_cpu(const SeriesKernelArgs& args) {
  const int64_t block = RC_ACTIVE_KERNELS.series_block;
  const int64_t padded = ceil_div(args.channels, block) * block;
  run_units(RC_ACTIVE_KERNELS.series_kernel, args, padded, 36 * padded * padded);
}

void series_gradient_cpu(const SeriesGradientArgs& args) {
  run_units(RC_ACTIVE_KERNELS.series_gradient, args, args.channels,
            36 * args.chunks * args.channels * args.channels);
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
