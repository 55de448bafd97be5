// The tiles of attention on CUDA. A block has one tile of rows (or, where columns gather, of
// columns) of one head and meets the tiles of the other side in turn, so that no sum needs atomics.
// A thread has kMine elements of every tile; what a tile adds to a result goes to global memory,
// which lets width be any number.
#pragma once

#include "common/cuda.h"
#include "density/attention.h"

namespace robustcore::density {
namespace {

// Of loops over a tile's kTile elements: whole, they are machine code without end.
#if defined(__CUDACC__)
#define RC_UNROLL_BY_4 _Pragma("unroll 4")
#else
#define RC_UNROLL_BY_4
#endif

constexpr int kStep = kThreads / kTile;  // rows between two elements of a thread
constexpr int kMine = kTile / kStep;
static_assert(kTile * kStep == kThreads);

template <class T>
struct Shared {
  T left[kTile][kTile + 1], right[kTile][kTile + 1], weights[kTile][kTile + 1];
  T stats[kStats][kTile];
};

// Rows [first, first + count) of a matrix [.., width].
template <class T>
struct Band {
  T* data;  // its first row
  int64_t count, width;
};

template <class T>
class Block {
 public:
  using L = OneLane<T>;

  __device__ Block(const AttentionInputs& in, Shared<T>& shared, int64_t head, int64_t row_tile)
      : in_(in),
        s_(shared),
        head_(head),
        mask_(mask_of<T>(in, head)),
        x(threadIdx.x % kTile),
        y(threadIdx.x / kTile) {
    set_rows(row_tile);
  }
  __device__ void set_rows(int64_t tile) {
    row = tile * kTile;
  }
  __device__ void set_columns(int64_t tile) {
    column = tile * kTile;
  }
  // Tiles of columns that a tile of rows sees, and the first tile of rows that sees the columns.
  __device__ int64_t column_tiles() const {
    const int64_t all = ceil_div(in_.columns, kTile), seen = row / kTile + 1;
    return in_.causal && seen < all ? seen : all;
  }
  __device__ int64_t first_row_tile() const {
    return in_.causal ? column / kTile : 0;
  }

  template <class Data>
  __device__ auto rows(Data* data, int64_t width) const {
    using Element = std::conditional_t<std::is_const_v<Data>, const T, T>;
    return band<Element>(data, head_ * in_.rows + row, in_.rows - row, width);
  }
  template <class Data>
  __device__ auto columns(Data* data, int64_t width) const {
    using Element = std::conditional_t<std::is_const_v<Data>, const T, T>;
    return band<Element>(data, head_ * in_.columns + column, in_.columns - column, width);
  }

  // sums[i] += <row y + i kStep of a, row x of b>
  __device__ void add_dots(Band<const T> a, Band<const T> b, T (&sums)[kMine]) const {
    RC_ROLL
    for (int64_t d = 0; d < a.width; d += kTile) {
      stage(a, d, s_.left);
      stage(b, d, s_.right);
      __syncthreads();
      RC_UNROLL_BY_4
      for (int i = 0; i < kTile; ++i) {
        const T right = s_.right[x][i];
        RC_UNROLL
        for (int m = 0; m < kMine; ++m) {
          sums[m] = fused_multiply_add(s_.left[y + m * kStep][i], right, sums[m]);
        }
      }
      __syncthreads();
    }
  }
  // result = (result or 0) + weights b; weights are there.
  __device__ void add_product(Band<const T> b, Band<T> result, bool add) const {
    RC_ROLL
    for (int64_t d = 0; d < b.width; d += kTile) {
      stage(b, d, s_.right);
      __syncthreads();
      RC_UNROLL
      for (int m = 0; m < kMine; ++m) {
        const int r = y + m * kStep;
        if (r >= result.count || d + x >= result.width) continue;
        T* const to = result.data + r * result.width + d + x;
        T sum = add ? *to : T(0);
        RC_UNROLL_BY_4
        for (int i = 0; i < kTile; ++i) {
          sum = fused_multiply_add(s_.weights[r][i], s_.right[i][x], sum);
        }
        *to = sum;
      }
      __syncthreads();
    }
  }

  // The logits, -infinity where nothing is seen or there is no element.
  __device__ void scores(T (&out)[kMine]) const {
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) out[m] = 0;
    add_dots(rows(in_.q, in_.dim), columns(in_.k, in_.dim), out);
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) {
      const int64_t i = row + y + m * kStep, j = column + x;
      out[m] = out[m] * static_cast<T>(in_.scale);
      const bool there = i < in_.rows && j < in_.columns && !(in_.causal && j > i);
      if (!there) out[m] = T(-INFINITY);
      if (there && mask_) {
        out[m] = out[m] + mask_[i * in_.mask_strides[2] + j * in_.mask_strides[3]];
      }
    }
  }
  __device__ void probabilities(T (&p)[kMine]) const {
    scores(p);
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) p[m] = exp<L>(p[m] - stat(0, m));
  }
  __device__ void dots(Band<const T> a, Band<const T> b, T (&out)[kMine]) const {
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) out[m] = 0;
    add_dots(a, b, out);
  }

  __device__ T stat(int which, int m) const {
    return s_.stats[which][y + m * kStep];
  }
  // A tile into shared memory as it is, or transposed.
  __device__ void set_weights(const T (&tile)[kMine], bool transposed = false) const {
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) {
      const int r = y + m * kStep;
      (transposed ? s_.weights[x][r] : s_.weights[r][x]) = tile[m];
    }
    __syncthreads();
  }
  // Calls body(r) in one thread a row of the tile; all threads wait for it.
  template <class Body>
  __device__ void for_each_row(const Body& body) const {
    if (threadIdx.x < kTile) body(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  int64_t row = 0, column = 0;

 private:
  template <class Element, class Data>
  __device__ Band<Element> band(Data* data, int64_t first, int64_t left, int64_t width) const {
    return {static_cast<Element*>(data) + first * width, left < kTile ? left : kTile, width};
  }
  __device__ void stage(const Band<const T>& from, int64_t d, T (&to)[kTile][kTile + 1]) const {
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) {
      const int r = y + m * kStep;
      const bool there = r < from.count && d + x < from.width;
      to[r][x] = there ? from.data[r * from.width + d + x] : T(0);
    }
  }

  const AttentionInputs& in_;
  Shared<T>& s_;
  int64_t head_;
  const T* mask_;
  int x, y;
};

}  // namespace
}  // namespace robustcore::density
