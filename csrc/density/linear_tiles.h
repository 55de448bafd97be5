// Tiles of 128 x 128 on the tensor cores: how a block's eight warps share one, what lies where in
// shared memory, and two products: of the rows of two matrices over their width, and of a tile of
// weights with the rows of a third.
//
// E is what matrices hold: BFloat16 is multiplied as it is, float in three products of TF32. Rows
// of shared memory are cut in 16 bytes that change places from row to row, so that lanes that read
// one column together read from different banks.
#pragma once

#include "common/async_copy.h"
#include "common/dynamic_shared.h"
#include "common/mma.h"
#include "density/linear_logsumexp.h"

namespace robustcore::density {
namespace {

constexpr int kSide = kSweepRows;                   // of a tile
constexpr int kWarpRows = 64, kWarpColumns = 32;    // that a warp has of it
constexpr int kWarpsAcross = kSide / kWarpColumns;  // 4, beside one another; 2 below
constexpr int kDown = kWarpRows / mma::kRows;       // products of a warp below one another
constexpr int kAcross = kWarpColumns / mma::kColumns;
constexpr int kMyRows = 2 * kDown;                 // rows that a thread has elements of
constexpr int kSliceBytes = 2 * mma::kDepthBytes;  // of a row, in one step of a pipeline
constexpr int kHalfStage = kSide * kSliceBytes;    // 8 KiB: a slice of one side, or of values
constexpr int kTileBytes = kSide * kSide * 4;      // weights: float32, or twice bfloat16
constexpr int kRingBytes = 4 * kHalfStage;         // of a pipeline beside the weights
static_assert(kSide * kSide == kWarpRows * kWarpColumns * kThreads / mma::kLanes);

// Of loops over the depths of a slice: float32's three products a fragment are long as they are.
#if defined(__CUDACC__)
#define RC_UNROLL_NARROW(E) _Pragma("unroll (sizeof(E) == 2 ? 2 : 1)")
#else
#define RC_UNROLL_NARROW(E)
#endif

// Rows of values in a slice.
template <class E>
constexpr int kValueRows = kSliceBytes / sizeof(E);

// Both offsets change in few bits: eight rows further on they are as many rows' bytes more, and
// `byte` parts of 32 (of slices) and more can be taken in by ^ afterwards. Loops over a tile need
// one address of the lane's then, where each offset from scratch would hold a register.
RC_HOST_DEVICE int slice_offset(int row, int byte) {
  return row * kSliceBytes + (byte ^ ((row / 2 % 4) * 16));
}
// Of a row of kSide elements.
template <class E>
constexpr int kSideBytes = kSide * sizeof(E);
template <class E>
RC_HOST_DEVICE int side_offset(int row, int byte) {
  return row * kSideBytes<E> + (byte ^ ((row % 4 * 2 + row / 4 % 2) * 16));
}

// What the tensor cores are given of a fragment.
template <template <class> class Fragment>
__device__ __forceinline__ Fragment<BFloat16> multiplied(const Fragment<BFloat16>& x) {
  return x;
}
template <template <class> class Fragment>
__device__ __forceinline__ mma::Split<Fragment<mma::Tf32>> multiplied(const Fragment<float>& x) {
  return mma::split(x);
}
template <class E>
using Columns = decltype(multiplied(mma::FragmentB<E>{}));

// e^x, to a few units of float32's last place.
__device__ __forceinline__ float fast_exp(float x) {
  const float y = x * 1.44269504f;
#if defined(__CUDA_ARCH__)
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(y));
  return result;
#else
  return ::exp2f(y);
#endif
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return convert<BFloat16>(low).bits | uint32_t{convert<BFloat16>(high).bits} << 16;
#endif
}

// threadIdx.x, read anew: what is computed from it is not kept in registers over a whole kernel.
__device__ __forceinline__ int fresh_thread() {
#if defined(__CUDA_ARCH__)
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

// A thread's elements of a tile.
struct Tile {
  mma::FragmentC c[kDown][kAcross];
  int lane, warp_row, warp_column;

  // Before each stretch of work.
  __device__ void find_place() {
    const int thread = fresh_thread();
    lane = thread % mma::kLanes;
    const int warp = thread / mma::kLanes;
    warp_row = warp / kWarpsAcross * kWarpRows;
    warp_column = warp % kWarpsAcross * kWarpColumns;
  }
  // Row r of mine, and columns 2 n and 2 n + 1.
  __device__ int row(int r) const {
    return warp_row + r / 2 * mma::kRows + mma::row_of(lane, r % 2 * 2);
  }
  __device__ int column(int n, int e) const {
    return warp_column + n * mma::kColumns + mma::column_of(lane, e);
  }
  __device__ float& at(int r, int n, int e) {
    return c[r / 2][n].v[r % 2 * 2 + e];
  }
  __device__ void clear() {
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      RC_UNROLL
      for (int n = 0; n < kAcross; ++n) at(r, n, 0) = at(r, n, 1) = 0;
    }
  }

  // += left right^T, of a slice of both.
  template <class E>
  __device__ void multiply_slices(const char* left, const char* right) {
    const int down = slice_offset(warp_row + mma::row_for_a(lane), mma::byte_for_a(lane));
    const int across = slice_offset(warp_column + mma::column_for_b(lane), mma::byte_for_b(lane));
    RC_UNROLL_NARROW(E)
    for (int byte = 0; byte < kSliceBytes; byte += mma::kDepthBytes) {
      Columns<E> b[kAcross];
      RC_UNROLL
      for (int n = 0; n < kAcross; n += 2) {
        mma::PairB<E> two;
        mma::load_b(two, right + n * mma::kColumns * kSliceBytes + (across ^ byte));
        b[n] = multiplied(two.b[0]), b[n + 1] = multiplied(two.b[1]);
      }
      RC_UNROLL
      for (int m = 0; m < kDown; ++m) {
        add<E>(m, left + m * mma::kRows * kSliceBytes + (down ^ byte), b);
      }
    }
  }

  // += weights values: values are rows [first, first + kValueRows) of the side that the columns of
  // weights are. Weights of bfloat16 may have a second part, what rounding left of the first.
  template <class E>
  __device__ void multiply_values(const char* weights, bool two_parts, int first,
                                  const char* values) {
    const int down = side_offset<E>(warp_row + mma::row_for_a(lane), mma::byte_for_a(lane));
    RC_UNROLL_NARROW(E)
    for (int d = 0; d < kValueRows<E>; d += mma::kDepth<E>) {
      Columns<E> b[kAcross];
      load_value_columns<E>(b, values + d * kSideBytes<E>);
      const char* const mine = weights + (down ^ ((first + d) * static_cast<int>(sizeof(E))));
      RC_ROLL
      for (int part = 0; part < (sizeof(E) == 2 && two_parts ? 2 : 1); ++part) {
        RC_UNROLL
        for (int m = 0; m < kDown; ++m) {
          add<E>(m, mine + part * (kTileBytes / 2) + m * mma::kRows * kSideBytes<E>, b);
        }
      }
    }
  }

  // Where element (r, n, 0) lies among stored weights.
  template <class E>
  __device__ int stored_at(int r, int n) const {
    const int first = side_offset<E>(row(0), column(0, 0) * static_cast<int>(sizeof(E)));
    return (first ^ (n * mma::kColumns * static_cast<int>(sizeof(E)))) +
           (row(r) - row(0)) * kSideBytes<E>;
  }

  // The elements, as multiply_values takes them.
  template <class E>
  __device__ void store(char* weights, bool two_parts) {
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      RC_UNROLL
      for (int n = 0; n < kAcross; ++n) {
        const float x = at(r, n, 0), y = at(r, n, 1);
        char* const to = weights + stored_at<E>(r, n);
        if constexpr (sizeof(E) == 4) {
          *reinterpret_cast<Pack<float, 2>*>(to) = {x, y};
        } else {
          const uint32_t both = pack(x, y);
          *reinterpret_cast<uint32_t*>(to) = both;
          if (!two_parts) continue;
          *reinterpret_cast<uint32_t*>(to + kTileBytes / 2) =
              pack(x - bit_cast<float>(both << 16), y - bit_cast<float>(both & 0xFFFF0000u));
        }
      }
    }
  }

  // Two of them again.
  template <class E>
  __device__ Pack<float, 2> stored(const char* weights, int r, int n) const {
    const auto& two = *reinterpret_cast<const Pack<E, 2>*>(weights + stored_at<E>(r, n));
    return {to_float(two.v[0]), to_float(two.v[1])};
  }

 private:
  template <class E>
  __device__ void add(int m, const char* mine, const Columns<E> (&b)[kAcross]) {
    mma::FragmentA<E> rows;
    mma::load_a(rows, mine);
    const auto a = multiplied(rows);
    RC_UNROLL
    for (int n = 0; n < kAcross; ++n) mma::multiply_add(c[m][n], a, b[n]);
  }

  template <class E>
  __device__ void load_value_columns(Columns<E> (&b)[kAcross], const char* values) {
    if constexpr (sizeof(E) == 2) {
      const int across = side_offset<E>(mma::row_for_b(lane),
                                        (warp_column + mma::first_column_for_b(lane)) * sizeof(E));
      RC_UNROLL
      for (int n = 0; n < kAcross; n += 2) {
        mma::PairB<E> two;
        mma::load_b_transposed(two, values + (across ^ (n * mma::kColumns * 2)));
        b[n] = two.b[0], b[n + 1] = two.b[1];
      }
    } else {
      const int across = side_offset<E>(lane % 4, (warp_column + lane / 4) * sizeof(E));
      RC_UNROLL
      for (int n = 0; n < kAcross; ++n) {
        mma::FragmentB<E> one;
        RC_UNROLL
        for (int h = 0; h < 2; ++h) {  // four rows on, the places are those of one column's 16
          const int at = (across ^ (n * mma::kColumns * 4 + h * 16)) + h * 4 * kSideBytes<E>;
          one.r[h] = *reinterpret_cast<const uint32_t*>(values + at);
        }
        b[n] = multiplied(one);
      }
    }
  }
};

// Runs load(s, stage) and multiply(s, stage) for the slices, copies under way for as many of them
// as there are stages, 2 or 4, less one. The ring may be written again when it returns.
template <class Load, class Multiply>
__device__ void pipeline(char* ring, int stages, int stage_bytes, int slices, const Load& load,
                         const Multiply& multiply) {
  const auto stage = [&](int s) { return ring + (s & (stages - 1)) * stage_bytes; };
  RC_ROLL
  for (int s = 1 - stages; s < slices; ++s) {
    if (s >= 0) {
      stages == 4 ? wait_copies<2>() : wait_copies<0>();
      __syncthreads();  // and all are through with the stage that is loaded next
    }
    const int next = s + stages - 1;
    if (next < slices) load(next, stage(next));
    commit_copies();
    if (s >= 0) multiply(s, stage(s));
  }
  __syncthreads();
}

// 64 bytes of each row, kSide rows or those there are, of a matrix whose rows are `pitch` bytes; of
// them `left` are there.
__device__ __forceinline__ void load_slice(char* to, const char* from, int rows, int64_t pitch,
                                           int64_t left) {
  const int thread = fresh_thread(), mine = thread % 4 * 16;
  RC_UNROLL
  for (int i = 0; i < kSide * 4 / kThreads; ++i) {
    const int row = thread / 4 + i * kThreads / 4;
    copy_async(to + slice_offset(row, mine), from + row * pitch + mine, row < rows && mine < left);
  }
}

// kSide elements of each of kValueRows rows, or of those there are.
template <class E>
__device__ __forceinline__ void load_values(char* to, const char* from, int rows, int64_t pitch,
                                            int64_t left) {
  constexpr int kAcrossRow = kSide * sizeof(E) / 16;
  const int thread = fresh_thread(), mine = thread % kAcrossRow * 16;
  RC_UNROLL
  for (int i = 0; i < kHalfStage / 16 / kThreads; ++i) {
    const int row = thread / kAcrossRow + i * kThreads / kAcrossRow;
    copy_async(to + side_offset<E>(row, mine), from + row * pitch + mine,
               row < rows && mine < left);
  }
}

}  // namespace
}  // namespace robustcore::density
