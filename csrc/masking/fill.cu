#include "common/cuda.h"
#include "masking/fill.h"

namespace robustcore::masking {
namespace {

// ---- Tiles ---------------------------------------------------------------------------------------

constexpr int64_t kChannelsOfUnit = 16;  // that share a tile's weights

// A tile with its halo is a square of kSide pixels, in shared memory inside a frame of zeros.
template <class T>
constexpr int kSide = sizeof(T) == sizeof(double) ? 24 : 32;
template <class T>
constexpr int kPitch = kSide<T> + 2;
template <class T>
constexpr int kPerThread = (kSide<T> * kSide<T> + kThreads - 1) / kThreads;

// kMax: the most iterations of this instance; their weights are what takes the shared memory.
template <class T, int kMax>
struct Square {
  T values[kPitch<T> * kPitch<T>], state[kPitch<T> * kPitch<T>];
  T weights[kMax][kSide<T> * kSide<T>];
};

// Sizes that would take registers: in constant memory, they take none.
struct FillGrid {
  int halo, side;  // side: of what is written
  int64_t tile_columns, tile_rows, channel_blocks, units;

  FillGrid(const FillArgs& args, int square)
      : halo(static_cast<int>(halo_of(args))),
        side(square - 2 * halo),
        tile_columns(ceil_div(args.columns, side)),
        tile_rows(ceil_div(args.rows, side)),
        channel_blocks(ceil_div(args.channels, kChannelsOfUnit)),
        units(args.images * channel_blocks * tile_rows * tile_columns) {}
};

// Calls body(k, p, row, column) for each pixel p of the square that is this thread's, its k-th.
template <class T, class Body>
__device__ __forceinline__ void for_pixels(const Body& body) {
  RC_UNROLL
  for (int k = 0; k < kPerThread<T>; ++k) {
    const int p = static_cast<int>(threadIdx.x) + k * kThreads;
    if (p < kSide<T> * kSide<T>) body(k, p, p / kSide<T>, p % kSide<T>);
  }
}

template <class T>
__device__ __forceinline__ int framed(int row, int column) {
  return (row + 1) * kPitch<T> + column + 1;
}

template <class T>
__device__ __forceinline__ T sum_row(const T* v) {
  return (v[-1] + v[0]) + v[1];
}

template <class T>
__device__ __forceinline__ T box(const T* v) {
  return (sum_row(v - kPitch<T>) + sum_row(v)) + sum_row(v + kPitch<T>);
}

// One unit: a block of channels of a tile. Threads write their own pixels and read their
// neighbours', so what is between two barriers does either.
template <class E, int kMax>
class TileFill {
  using T = Arithmetic<E>;

 public:
  __device__ TileFill(const FillArgs& args, const FillGrid& grid, Square<T, kMax>& square,
                      int64_t unit)
      : args_(args),
        grid_(grid),
        square_(square),
        column0_(unit % grid.tile_columns * grid.side - grid.halo),
        row0_(unit / grid.tile_columns % grid.tile_rows * grid.side - grid.halo),
        image_(unit / grid.tile_columns / grid.tile_rows / grid.channel_blocks) {}

  // The weights of all iterations; leaves the mask after them in the square's state.
  __device__ __forceinline__ void make_weights() {
    T* const state = square_.state;
    for_pixels<T>([&](int, int, int row, int column) {
      state[framed<T>(row, column)] = inside(row, column) ? mask_at(row, column) : T(0);
    });
    T next[kPerThread<T>];
    RC_ROLL
    for (int t = 0; t < args_.iters; ++t) {
      __syncthreads();
      for_pixels<T>([&](int k, int p, int row, int column) {
        const T* m = state + framed<T>(row, column);
        const T visible = box(m);
        next[k] = inside(row, column) ? next_mask(*m, visible) : T(0);
        square_.weights[t][p] = inside(row, column) ? fill_weight(*m, visible) : T(0);
      });
      __syncthreads();
      set(state, next);
    }
  }

  __device__ __forceinline__ void load(int64_t channel) {
    const bool multiply = args_.multiply && args_.mode == FillMode::kFill;
    for_pixels<T>([&](int, int, int row, int column) {
      T v = T(0);
      if (inside(row, column)) {
        const int64_t at =
            offset_of(args_.x.strides, image_, channel, row0_ + row, column0_ + column);
        v = convert<T>(static_cast<const E*>(args_.x.data)[at]);
        if (multiply) v = masked(v, mask_at(row, column));
      }
      square_.values[framed<T>(row, column)] = v;
    });
  }

  __device__ __forceinline__ void step(int t) {
    T next[kPerThread<T>];
    __syncthreads();
    for_pixels<T>([&](int k, int p, int row, int column) {
      const T* v = square_.values + framed<T>(row, column);
      next[k] = filled(*v, square_.weights[t][p], box(v));
    });
    __syncthreads();
    set(square_.values, next);
  }

  // x + B (w x)
  __device__ __forceinline__ void step_transposed(int t) {
    T next[kPerThread<T>];
    for_pixels<T>([&](int k, int p, int row, int column) {
      T& v = square_.values[framed<T>(row, column)];
      const T w = square_.weights[t][p];
      next[k] = v;
      v = w == T(0) ? T(0) : w * v;
    });
    __syncthreads();
    for_pixels<T>([&](int k, int, int row, int column) {
      next[k] = next[k] + box(square_.values + framed<T>(row, column));
    });
    __syncthreads();
    set(square_.values, next);
  }

  __device__ __forceinline__ void store(int64_t channel, const T* values) const {
    const bool multiply = args_.multiply && args_.mode == FillMode::kTranspose;
    for_pixels<T>([&](int, int, int row, int column) {
      if (!written(row, column)) return;
      T v = values[framed<T>(row, column)];
      if (multiply) v = masked(v, mask_at(row, column));
      const int64_t at =
          offset_of(args_.out_strides, image_, channel, row0_ + row, column0_ + column);
      static_cast<E*>(args_.out)[at] = convert<E>(v);
    });
  }

 private:
  __device__ __forceinline__ bool inside(int row, int column) const {  // the image
    return row0_ + row >= 0 && row0_ + row < args_.rows && column0_ + column >= 0 &&
           column0_ + column < args_.columns;
  }
  __device__ __forceinline__ bool written(int row, int column) const {
    const int first = grid_.halo, last = first + grid_.side;
    return inside(row, column) && row >= first && row < last && column >= first && column < last;
  }
  __device__ __forceinline__ T mask_at(int row, int column) const {
    return load_as<T>(args_.mask.data, args_.mask.dtype,
                      offset_of(args_.mask.strides, image_, 0, row0_ + row, column0_ + column));
  }
  static __device__ __forceinline__ void set(T* values, const T (&next)[kPerThread<T>]) {
    for_pixels<T>(
        [&](int k, int, int row, int column) { values[framed<T>(row, column)] = next[k]; });
  }

  const FillArgs& args_;
  const FillGrid& grid_;
  Square<T, kMax>& square_;
  const int64_t column0_, row0_, image_;  // of the square's first pixel
};

template <class E, int kMax>
__global__ void __launch_bounds__(kThreads, 3)
    fill_kernel(const __grid_constant__ FillArgs args, const __grid_constant__ FillGrid grid) {
  using T = Arithmetic<E>;
  __shared__ Square<T, kMax> square;
  for (int i = static_cast<int>(threadIdx.x); i < kPitch<T> * kPitch<T>; i += kThreads) {
    square.values[i] = square.state[i] = T(0);
  }
  __syncthreads();

  for_units(grid.units, [&](int64_t unit) {
    TileFill<E, kMax> tile(args, grid, square, unit);
    tile.make_weights();
    if (args.mode == FillMode::kState) return tile.store(0, square.state);
    const int64_t first =
        unit / grid.tile_columns / grid.tile_rows % grid.channel_blocks * kChannelsOfUnit;
    const int64_t last =
        first + kChannelsOfUnit < args.channels ? first + kChannelsOfUnit : args.channels;
    RC_ROLL
    for (int64_t channel = first; channel < last; ++channel) {
      tile.load(channel);
      RC_ROLL
      for (int t = 0; t < args.iters; ++t) {
        if (args.mode == FillMode::kFill) {
          tile.step(t);
        } else {
          tile.step_transposed(args.iters - 1 - t);
        }
      }
      tile.store(channel, square.values);
    }
  });
}

template <class E, int kMax>
void launch_fill(const FillArgs& args, void* stream) {
  const FillGrid grid(args, kSide<Arithmetic<E>>);
  launch(fill_kernel<E, kMax>, grid.units, kThreads, stream, args, grid);
}

// ---- One iteration where channels are adjacent ---------------------------------------------------

// The image's pixels around one, as fill_pixels_kernel reads them.
template <class E>
struct Around {
  using T = Arithmetic<E>;
  const FillArgs& args;
  int64_t image, row, column;

  __device__ bool inside(int r, int c) const {
    return row + r >= 0 && row + r < args.rows && column + c >= 0 && column + c < args.columns;
  }
  __device__ T mask(int r, int c) const {
    if (!inside(r, c)) return T(0);
    return load_as<T>(args.mask.data, args.mask.dtype,
                      offset_of(args.mask.strides, image, 0, row + r, column + c));
  }
  // kWide neighbouring channels, times the mask; what is hidden is not read.
  template <int kWide>
  __device__ void values(int r, int c, int64_t channel, T m, T (&to)[kWide]) const {
    Pack<E, kWide> x{};
    if (m != T(0)) {
      x = *reinterpret_cast<const Pack<E, kWide>*>(
          static_cast<const E*>(args.x.data) +
          offset_of(args.x.strides, image, channel, row + r, column + c));
    }
    RC_UNROLL
    for (int i = 0; i < kWide; ++i) to[i] = masked(convert<T>(x.v[i]), m);
  }
};

// kWide neighbouring channels of one pixel a thread, and a pixel that is visible is only copied.
template <class E, class Index, int kWide>
__global__ void __launch_bounds__(kThreads, sizeof(E) == 4 ? 3 : 2)
    fill_pixels_kernel(const __grid_constant__ FillArgs args) {
  using T = Arithmetic<E>;
  const Index channels = args.channels, columns = args.columns;
  for_image_packs<Index, kWide>(
      args.images, args.rows * args.columns * args.channels, [&](int64_t image, Index e) {
        const Index pixel = e / channels, channel = e - pixel * channels, row = pixel / columns;
        const Around<E> at{args, image, row, pixel - row * columns};
        const T m = at.mask(0, 0);
        T v[kWide];
        at.values(0, 0, channel, m, v);
        if (m != T(1)) {
          T visible, sum[kWide];
          RC_UNROLL
          for (int r = 0; r < 3; ++r) {
            T visible_row, sum_row[kWide];
            RC_UNROLL
            for (int c = 0; c < 3; ++c) {
              const T near = at.mask(r - 1, c - 1);
              T values[kWide];
              at.values(r - 1, c - 1, channel, near, values);
              visible_row = c == 0 ? near : visible_row + near;
              RC_UNROLL
              for (int i = 0; i < kWide; ++i) {
                sum_row[i] = c == 0 ? values[i] : sum_row[i] + values[i];
              }
            }
            visible = r == 0 ? visible_row : visible + visible_row;
            RC_UNROLL
            for (int i = 0; i < kWide; ++i) sum[i] = r == 0 ? sum_row[i] : sum[i] + sum_row[i];
          }
          const T weight = fill_weight(m, visible);
          RC_UNROLL
          for (int i = 0; i < kWide; ++i) v[i] = filled(v[i], weight, sum[i]);
        }
        Pack<E, kWide> out;
        RC_UNROLL
        for (int i = 0; i < kWide; ++i) out.v[i] = convert<E>(v[i]);
        *reinterpret_cast<Pack<E, kWide>*>(
            static_cast<E*>(args.out) +
            offset_of(args.out_strides, image, channel, row, at.column)) = out;
      });
}

template <class E>
void launch_fill_pixels(const FillArgs& args, void* stream) {
  bool whole = args.channels % kPack<E> == 0 && is_aligned(args.x.data) && is_aligned(args.out);
  for (const int d : {0, 2, 3}) {
    whole = whole && args.x.strides[d] % kPack<E> == 0 && args.out_strides[d] % kPack<E> == 0;
  }
  const int64_t elements = args.rows * args.columns * args.channels;
  for_pack_width<E>(args.images, elements, whole, [&](auto index, auto wide, int64_t units) {
    launch(fill_pixels_kernel<E, decltype(index), wide()>, units, kThreads, stream, args);
  });
}

}  // namespace

void fill_cuda(const FillArgs& args, void* stream) {
  const bool adjacent = args.x.strides[1] == 1 && args.out_strides[1] == 1 && args.channels >= 8;
  dispatch(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    if (args.mode == FillMode::kFill && args.multiply && args.iters == 1 && adjacent) {
      launch_fill_pixels<E>(args, stream);
    } else if (args.iters <= 2) {
      launch_fill<E, 2>(args, stream);
    } else {
      launch_fill<E, kMaxIters>(args, stream);
    }
  });
}

}  // namespace robustcore::masking
