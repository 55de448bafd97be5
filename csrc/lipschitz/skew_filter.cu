#include "common/math.h"
#include "common/rows_cuda.h"
#include "lipschitz/skew_filter.h"

namespace robustcore::lipschitz {
namespace {

constexpr int kMaxWarps = 16, kMaxTaps = FilterShape::kMaxSide * FilterShape::kMaxSide;

// The norm that a row of `squares` adds up to, in all lanes of a warp.
__device__ float norm_of(const PowerArgs& args, int which, int lane) {
  const int n = args.shape.channels;
  double sum = 0;
  RC_ROLL
  for (int r = lane; r < n; r += kWarp) sum += args.squares[which * n + r];
  return static_cast<float>(::sqrt(warp_sum(sum)));
}

// A block a row, a warp a tap: reads of the weight's transpose share their lines. Calls tap(r, t)
// in all lanes of a warp, then row(r) in one thread.
template <class Tap, class Row>
__device__ __forceinline__ void over_taps(const FilterShape& shape, const Tap& tap,
                                          const Row& row) {
  const int warp = threadIdx.x / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const int r = static_cast<int>(blockIdx.x);
  RC_ROLL
  for (int t = warp; t < shape.taps(); t += warps) tap(r, t);
  __syncthreads();
  if (threadIdx.x == 0) row(r);
}
void launch_taps(auto kernel, const auto& args, void* stream) {
  const int taps = args.shape.taps();
  launch(kernel, args.shape.channels, (taps < kMaxWarps ? taps : kMaxWarps) * kWarp, stream, args);
}

__global__ void __launch_bounds__(kMaxWarps* kWarp)
    power_half_kernel(const __grid_constant__ PowerArgs args) {
  __shared__ float mixed[kMaxTaps], flat[kMaxTaps], largest[kMaxTaps], norms[2];
  const int n = args.shape.channels, taps = args.shape.taps();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (args.second) {
    for (int which = warp; which < 2; which += blockDim.x / kWarp) {
      const float norm = norm_of(args, which, lane);
      if (lane == 0) norms[which] = norm;
    }
    __syncthreads();
  }
  const auto tap = [&](int r, int t) {
    const Factor a = mixed_factor(args, t, args.second ? norms[0] : 1.0f);
    const Factor b = flat_factor(args, t, args.second ? norms[1] : 1.0f);
    float sum_a = 0, sum_b = 0, most = 0;
    RC_ROLL
    for (int j = lane; j < n; j += kWarp) {
      const float s = skew_at(args.weight, args.shape, r, j, t);
      sum_a = fused_multiply_add(s, a.at(j), sum_a);
      sum_b = fused_multiply_add(s, b.at(j), sum_b);
      most = Scalar::max(abs<Scalar>(args.weight[(r * n + j) * taps + t]), most);
    }
    sum_a = warp_sum(sum_a), sum_b = warp_sum(sum_b), most = warp_max(most);
    if (lane == 0) mixed[t] = sum_a, flat[t] = sum_b, largest[t] = most;
  };
  over_taps(args.shape, tap, [&](int r) {
    write_row(args, r, mixed, flat);
    if (args.second) return;
    float most = 0;
    RC_ROLL
    for (int t = 0; t < taps; ++t) most = Scalar::max(largest[t], most);
    args.largest[r] = most;
  });
}

__global__ void __launch_bounds__(kThreads)
    power_finish_kernel(const __grid_constant__ PowerArgs args) {
  __shared__ float norms[4], most;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  if (warp < 4) {
    const float norm = norm_of(args, warp, lane);
    if (lane == 0) norms[warp] = norm;
  } else if (warp == 4) {
    float m = 0;
    RC_ROLL
    for (int r = lane; r < args.shape.channels; r += kWarp) m = Scalar::max(args.largest[r], m);
    m = warp_max(m);
    if (lane == 0) most = m;
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    args.norms[0] = norms[2], args.norms[1] = norms[3];
    args.norms[2] = least_norm(args, most);
  }
  RC_ROLL
  for (int e = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
       e < finish_entries(args.shape); e += static_cast<int>(gridDim.x * kThreads)) {
    finish_entry(args, norms, e);
  }
}

// Calls body(o, i, t) for all entries, kWarpsPerBlock rows and kWarp columns a block, in which
// reads of the transpose share their lines. Neighbouring lanes have neighbours in memory.
template <class Body>
__device__ __forceinline__ void for_entries(const FilterShape& shape, bool channels_last,
                                            const Body& body) {
  const int n = shape.channels, taps = shape.taps(), tiles = (n + kWarp - 1) / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int down = static_cast<int>(blockIdx.x) / tiles;
  const int o = down * kWarpsPerBlock + warp;
  const int first = (static_cast<int>(blockIdx.x) - down * tiles) * kWarp;
  if (o >= n) return;
  RC_ROLL
  for (int m = 0; m < taps; ++m) {
    const int e = lane + m * kWarp;
    const int i = first + (channels_last ? lane : e / taps);
    const int t = channels_last ? m : e % taps;
    if (i < n) body(o, i, t);
  }
}
int64_t entry_blocks(const FilterShape& shape) {
  return ceil_div(shape.channels, kWarpsPerBlock) * ceil_div(shape.channels, kWarp);
}

__global__ void __launch_bounds__(kThreads) filter_kernel(const __grid_constant__ FilterArgs args) {
  const float factor = factor_of(args.scale, args.norms);
  for_entries(args.shape, args.channels_last, [&](int o, int i, int t) {
    const int k = filter_index(args.shape, args.channels_last, o, i, t);
    const float value = skew_at(args.weight, args.shape, o, i, t) * factor;
    dispatch_narrow<float>(args.dtype, [&](auto tag) {
      static_cast<decltype(tag)*>(args.out)[k] = convert<decltype(tag)>(value);
    });
  });
}

// A branch on the dtype at each element costs little beside its reads, loops for each are bytes.
__device__ __forceinline__ float gradient(const FilterBackwardArgs& args, int k) {
  float value = 0;
  dispatch_narrow<float>(args.dtype,
                         [&](auto tag) { value = gradient_at<decltype(tag)>(args, k); });
  return value;
}

__global__ void __launch_bounds__(kMaxWarps* kWarp)
    filter_inner_kernel(const __grid_constant__ FilterBackwardArgs args) {
  __shared__ float inner[kMaxTaps];
  const FilterShape& shape = args.shape;
  const auto tap = [&](int r, int t) {
    const int lane = threadIdx.x % kWarp;
    float sum = 0;
    RC_ROLL
    for (int j = lane; j < shape.channels; j += kWarp) {
      const float g = gradient(args, filter_index(shape, args.channels_last, r, j, t));
      sum = fused_multiply_add(g, skew_at(args.weight, shape, r, j, t), sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) inner[t] = sum;
  };
  over_taps(shape, tap, [&](int r) {
    float sum = 0;
    RC_ROLL
    for (int t = 0; t < shape.taps(); ++t) sum += inner[t];
    args.inner[r] = sum;
  });
}

__global__ void __launch_bounds__(kThreads)
    filter_backward_kernel(const __grid_constant__ FilterBackwardArgs args) {
  __shared__ float inner;
  const FilterShape shape = args.shape;
  if (threadIdx.x < kWarp) {
    double sum = 0;
    RC_ROLL
    for (int r = threadIdx.x; r < shape.channels; r += kWarp) sum += args.inner[r];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) inner = static_cast<float>(sum);
  }
  __syncthreads();
  const Slope slope(args, inner);
  for_entries(shape, false, [&](int o, int i, int t) {
    const auto at = [&](int o, int i, int t) {
      const int k = filter_index(shape, args.channels_last, o, i, t);
      return slope.at(args, o, i, t, gradient(args, k));
    };
    args.out[filter_index(shape, false, o, i, t)] =
        (at(o, i, t) - at(i, o, shape.taps() - 1 - t)) * 0.5f;
  });
}

}  // namespace

void power_cuda(const PowerArgs& args, void* stream) {
  PowerArgs half = args;
  for (const bool second : {false, true}) {
    half.second = second;
    launch_taps(power_half_kernel, half, stream);
  }
  launch_items(power_finish_kernel, finish_entries(args.shape), stream, args);
}

void filter_cuda(const FilterArgs& args, void* stream) {
  launch(filter_kernel, entry_blocks(args.shape), kThreads, stream, args);
}

void filter_backward_cuda(const FilterBackwardArgs& args, void* stream) {
  launch_taps(filter_inner_kernel, args, stream);
  launch(filter_backward_kernel, entry_blocks(args.shape), kThreads, stream, args);
}

}  // namespace robustcore::lipschitz
