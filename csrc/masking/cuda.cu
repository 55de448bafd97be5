#include "common/launch.h"
#include "masking/launch.h"

namespace robustcore::masking {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kChannelsOfUnit = 16;  // that share a tile's weights

// A tile with its halo is a square of kSide pixels, in shared memory inside a frame of zeros.
template <class T>
constexpr int kSide = sizeof(T) == sizeof(double) ? 24 : 32;
template <class T>
constexpr int kPitch = kSide<T> + 2;
template <class T>
constexpr int kPerThread = (kSide<T> * kSide<T> + kThreads - 1) / kThreads;

// What a thread does for each of its pixels of the square.
template <class T, class Body>
__device__ void for_pixels(const Body& body) {
  RC_UNROLL
  for (int k = 0; k < kPerThread<T>; ++k) {
    const int p = static_cast<int>(threadIdx.x) + k * kThreads;
    if (p < kSide<T> * kSide<T>) body(k, p, p / kSide<T>, p % kSide<T>);
  }
}

template <class T>
__device__ int framed(int row, int column) {
  return (row + 1) * kPitch<T> + column + 1;
}

template <class T>
__device__ T sum_row(const T* v) {
  return (v[-1] + v[0]) + v[1];
}

template <class T>
__device__ T box(const T* v) {
  return (sum_row(v - kPitch<T>) + sum_row(v)) + sum_row(v + kPitch<T>);
}

// kMax: the most iterations of this instance; their weights are what takes the shared memory.
template <class E, int kMax>
__global__ void __launch_bounds__(kThreads, 2)
    fill_kernel(const __grid_constant__ FillArgs args, int64_t units) {
  using T = Arithmetic<E>;
  __shared__ T values[kPitch<T> * kPitch<T>], state[kPitch<T> * kPitch<T>];
  __shared__ T weights[kMax][kSide<T> * kSide<T>];
  const int halo = static_cast<int>(halo_of(args)),
            side = kSide<T> - 2 * halo;  // of what is written
  const int64_t tile_columns = ceil_div(args.columns, side), tile_rows = ceil_div(args.rows, side);
  const int64_t blocks = ceil_div(args.channels, kChannelsOfUnit);
  for (int i = static_cast<int>(threadIdx.x); i < kPitch<T> * kPitch<T>; i += kThreads) {
    values[i] = state[i] = T(0);
  }
  __syncthreads();

  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t column0 = unit % tile_columns * side - halo;
    const int64_t row0 = unit / tile_columns % tile_rows * side - halo;
    const int64_t rest = unit / tile_columns / tile_rows;
    const int64_t c0 = rest % blocks * kChannelsOfUnit, image = rest / blocks;
    const int64_t c1 = c0 + kChannelsOfUnit < args.channels ? c0 + kChannelsOfUnit : args.channels;
    const auto inside = [&](int row, int column) {
      return row0 + row >= 0 && row0 + row < args.rows && column0 + column >= 0 &&
             column0 + column < args.columns;
    };
    const auto written = [&](int row, int column) {
      return inside(row, column) && row >= halo && row < halo + side && column >= halo &&
             column < halo + side;
    };
    const auto mask_at = [&](int row, int column) {
      return load_as<T>(args.mask.data, args.mask.dtype,
                        offset_of(args.mask.strides, image, 0, row0 + row, column0 + column));
    };
    const auto write = [&](int64_t channel, int row, int column, T v) {
      static_cast<E*>(
          args.out)[offset_of(args.out_strides, image, channel, row0 + row, column0 + column)] =
          convert<E>(v);
    };

    for_pixels<T>([&](int, int, int row, int column) {
      state[framed<T>(row, column)] = inside(row, column) ? mask_at(row, column) : T(0);
    });
    T next[kPerThread<T>];
    RC_ROLL
    for (int t = 0; t < args.iters; ++t) {
      __syncthreads();
      for_pixels<T>([&](int k, int p, int row, int column) {
        const T* m = state + framed<T>(row, column);
        const T visible = box(m);
        next[k] = inside(row, column) ? next_mask(*m, visible) : T(0);
        weights[t][p] = inside(row, column) ? fill_weight(*m, visible) : T(0);
      });
      __syncthreads();
      for_pixels<T>(
          [&](int k, int, int row, int column) { state[framed<T>(row, column)] = next[k]; });
    }
    if (args.mode == FillMode::kState) {
      for_pixels<T>([&](int, int, int row, int column) {
        if (written(row, column)) write(0, row, column, state[framed<T>(row, column)]);
      });
      continue;
    }

    RC_ROLL
    for (int64_t channel = c0; channel < c1; ++channel) {
      for_pixels<T>([&](int, int, int row, int column) {
        T v = T(0);
        if (inside(row, column)) {
          v = convert<T>(static_cast<const E*>(args.x.data)[offset_of(
              args.x.strides, image, channel, row0 + row, column0 + column)]);
          if (args.multiply && args.mode == FillMode::kFill) v = masked(v, mask_at(row, column));
        }
        values[framed<T>(row, column)] = v;
      });
      RC_ROLL
      for (int step = 0; step < args.iters; ++step) {
        if (args.mode == FillMode::kFill) {
          __syncthreads();
          for_pixels<T>([&](int k, int p, int row, int column) {
            const T* v = values + framed<T>(row, column);
            next[k] = filled(*v, weights[step][p], box(v));
          });
        } else {
          T own[kPerThread<T>];
          for_pixels<T>([&](int k, int p, int row, int column) {
            T& v = values[framed<T>(row, column)];
            const T w = weights[args.iters - 1 - step][p];
            own[k] = v;
            v = w == T(0) ? T(0) : w * v;
          });
          __syncthreads();
          for_pixels<T>([&](int k, int, int row, int column) {
            next[k] = own[k] + box(values + framed<T>(row, column));
          });
        }
        __syncthreads();
        for_pixels<T>(
            [&](int k, int, int row, int column) { values[framed<T>(row, column)] = next[k]; });
      }
      // A thread reads back only what it wrote.
      for_pixels<T>([&](int, int, int row, int column) {
        if (!written(row, column)) return;
        T v = values[framed<T>(row, column)];
        if (args.multiply && args.mode == FillMode::kTranspose) v = masked(v, mask_at(row, column));
        write(channel, row, column, v);
      });
    }
    __syncthreads();
  }
}

// One iteration where channels are adjacent: neighbouring threads take neighbouring channels of one
// pixel, and a pixel that is visible is only copied.
template <class E>
__global__ void __launch_bounds__(kThreads)
    fill_pixels_kernel(const __grid_constant__ FillArgs args) {
  using T = Arithmetic<E>;
  const int64_t items = args.images * args.rows * args.columns * args.channels;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; item < items;
       item += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t channel = item % args.channels, pixel = item / args.channels;
    const int64_t column = pixel % args.columns, row = pixel / args.columns % args.rows;
    const int64_t image = pixel / args.columns / args.rows;
    const auto mask_at = [&](int64_t r, int64_t c) {
      const bool inside = r >= 0 && r < args.rows && c >= 0 && c < args.columns;
      return inside ? load_as<T>(args.mask.data, args.mask.dtype,
                                 offset_of(args.mask.strides, image, 0, r, c))
                    : T(0);
    };
    const auto value_at = [&](int64_t r, int64_t c, T m) {
      return m == T(0) ? T(0)
                       : convert<T>(static_cast<const E*>(
                             args.x.data)[offset_of(args.x.strides, image, channel, r, c)]) *
                             m;
    };
    const T m = mask_at(row, column);
    T v = value_at(row, column, m);
    if (m != T(1)) {
      T visible[3], sum[3];
      RC_UNROLL
      for (int r = 0; r < 3; ++r) {
        T mask_row[3], row_sum[3];
        RC_UNROLL
        for (int c = 0; c < 3; ++c) {
          mask_row[c] = mask_at(row + r - 1, column + c - 1);
          row_sum[c] = value_at(row + r - 1, column + c - 1, mask_row[c]);
        }
        visible[r] = (mask_row[0] + mask_row[1]) + mask_row[2];
        sum[r] = (row_sum[0] + row_sum[1]) + row_sum[2];
      }
      const T weight = fill_weight(m, (visible[0] + visible[1]) + visible[2]);
      v = filled(v, weight, (sum[0] + sum[1]) + sum[2]);
    }
    static_cast<E*>(args.out)[offset_of(args.out_strides, image, channel, row, column)] =
        convert<E>(v);
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(const __grid_constant__ EpilogueArgs args) {
  using T = Arithmetic<E>;
  const int64_t pixels = args.rows * args.columns, image_size = pixels * args.channels;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       item < args.images * image_size; item += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t image = item / image_size, e = item % image_size;
    const int64_t channel = args.channels_last ? e % args.channels : e / pixels;
    const int64_t pixel = args.channels_last ? e / args.channels : e % pixels;
    const T m = args.mask.data ? load_as<T>(args.mask.data, args.mask.dtype,
                                            offset_of(args.mask.strides, image, 0,
                                                      pixel / args.columns, pixel % args.columns))
                               : T(1);
    const T scale = args.scale ? static_cast<const T*>(args.scale)[channel] : T(1);
    const T shift = args.shift ? static_cast<const T*>(args.shift)[channel] : T(0);
    const T x = convert<T>(static_cast<const E*>(args.x.data)[image * args.x.strides[0] + e]);
    static_cast<E*>(args.out)[item] =
        convert<E>(epilogue(x, scale, shift, args.scale || args.shift, args.relu, m));
  }
}

int64_t blocks_for(int64_t items) {
  const int64_t blocks = ceil_div(items, kThreads), enough = blocks_wanted();
  return blocks < enough ? blocks : enough;
}

template <class E, int kMax>
void launch_fill(const FillArgs& args, cudaStream_t stream) {
  const int64_t side = kSide<Arithmetic<E>> - 2 * halo_of(args);
  const int64_t units = args.images * ceil_div(args.rows, side) * ceil_div(args.columns, side) *
                        ceil_div(args.channels, kChannelsOfUnit);
  const auto kernel = fill_kernel<E, kMax>;
  RC_LAUNCH(kernel, grid_for(units), kThreads, stream, args, units);
}

}  // namespace

void fill_cuda(const FillArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const bool adjacent = args.x.strides[1] == 1 && args.out_strides[1] == 1 && args.channels >= 8;
  dispatch(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    if (args.mode == FillMode::kFill && args.multiply && args.iters == 1 && adjacent) {
      const auto kernel = fill_pixels_kernel<E>;
      RC_LAUNCH(kernel, blocks_for(args.images * args.channels * args.rows * args.columns),
                kThreads, stream, args);
    } else if (args.iters <= 2) {
      launch_fill<E, 2>(args, stream);
    } else {
      launch_fill<E, kMaxIters>(args, stream);
    }
  });
  check_cuda(cudaGetLastError());
}

void epilogue_cuda(const EpilogueArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  dispatch(args.dtype, [&](auto tag) {
    const auto kernel = epilogue_kernel<decltype(tag)>;
    RC_LAUNCH(kernel, blocks_for(args.images * args.channels * args.rows * args.columns), kThreads,
              stream, args);
  });
  check_cuda(cudaGetLastError());
}

}  // namespace robustcore::masking
