// Rows on CUDA: how warps share them, and sums in the one order.
#pragma once

#include "common/cuda.h"
#include "common/rows.h"

namespace robustcore {
namespace {

constexpr int kWarp = 32, kWarpsPerBlock = kThreads / kWarp;
static_assert(kWarp == kSums, "a lane is an accumulator");
// Blocks a processor holds at least: what leaves each thread enough registers.
template <class In>
constexpr int kBlocks = sizeof(In) == sizeof(double) ? 2 : 4;

// Elements that a thread has in flight at a time: what hides the memory's latency.
constexpr int kAhead = 4;

// Neighbouring warps of a block share a row: one where a row is short, all where it is long. All
// threads of a block make the same turns, because shuffles and barriers need them.
struct Team {
  int warps;                 // 1 or kWarpsPerBlock
  int blocks = 1, part = 0;  // how many blocks share a row, each a team, and which of them this is
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int row = warps == 1 ? warp : 0, member = warps == 1 ? 0 : warp;

  __device__ explicit Team(int warps_) : warps(warps_) {}
  __device__ bool writes() const {
    return lane == 0 && member == 0;
  }
  // Calls body(k) with this thread's columns.
  template <class Body>
  __device__ void for_columns(int64_t columns, const Body& body) const {
    RC_ROLL
    for (int64_t k = member * kWarp + lane; k < columns; k += warps * kWarp) body(k);
  }
  // Calls body(first) for kAhead columns of this thread at a time: first, first + kWarp and so on.
  template <class Body>
  __device__ void for_batches(int64_t columns, const Body& body) const {
    constexpr int kBatch = kWarp * kAhead;
    RC_ROLL
    for (int64_t k = (part * warps + member) * kBatch + lane; k < columns;
         k += blocks * warps * kBatch) {
      body(k);
    }
  }
};

// A row of a matrix, in whatever dtype it has, computed with in T.
template <class T>
struct LaneRow {
  const StridedView& view;
  int64_t begin;

  __device__ LaneRow(const StridedView& view_, int64_t row, int64_t sample = 0)
      : view(view_), begin(row * view_.image_stride + sample * view_.sample_stride) {}

  // values[i] = element first + i * kStep, 0 from `end` on. One branch on the dtype for all, and
  // all loads before the first use.
  template <int kStep = kWarp>
  __device__ void read(int64_t first, int64_t end, T (&values)[kAhead]) const {
    int64_t at[kAhead];
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) at[i] = begin + element_offset(view, first + i * kStep);
    dispatch_narrow<T>(view.dtype, [&](auto tag) {
      const auto* data = static_cast<const decltype(tag)*>(view.data);
      RC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        values[i] = first + i * kStep < end ? convert<T>(data[at[i]]) : T(0);
      }
    });
  }
};

// The reverse, for a contiguous matrix whose row begins at element `begin` of `data`.
template <class T>
__device__ void write_batch(void* data, DType dtype, int64_t begin, int64_t first, int64_t end,
                            const T (&values)[kAhead]) {
  dispatch_narrow<T>(dtype, [&](auto tag) {
    auto* to = static_cast<decltype(tag)*>(data) + begin + first;
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kWarp < end) to[i * kWarp] = convert<decltype(tag)>(values[i]);
    }
  });
}

// How many warps share a row of so many elements.
RC_HOST_DEVICE int team_size(int64_t elements) {
  return elements <= 2 * kSegment ? 1 : kWarpsPerBlock;
}
RC_HOST_DEVICE int rows_at_once(int warps) {
  return warps == 1 ? kWarpsPerBlock : 1;
}

// Calls body(team, row, live) for the block's rows. A team whose row is past the end comes along,
// on row 0 and not live.
template <class Body>
__device__ void for_rows(int warps, int64_t rows, const Body& body) {
  const Team team(warps);
  const int64_t at_once = rows_at_once(warps);
  // Counted in rows, not in units: that takes up to eight registers less.
  for (int64_t first = blockIdx.x * at_once; first < rows; first += gridDim.x * at_once) {
    const int64_t row = first + team.row;
    body(team, row < rows ? row : 0, row < rows);
  }
}

// The same with teams of one size, however long the rows.
template <int kWarps, class Body>
__device__ void for_rows(int64_t rows, const Body& body) {
  for_rows(kWarps, rows, body);
}

// The same where nothing is added up along a row: for_batches gives a team its share of the row.
template <class Body>
__device__ void for_shared_rows(int64_t rows, int64_t columns, const Body& body) {
  Team team(team_size(columns));
  if (team.warps == 1 || gridDim.x <= rows) return for_rows(team.warps, rows, body);
  team.blocks = static_cast<int>(gridDim.x / rows);
  team.part = static_cast<int>(blockIdx.x / rows);
  body(team, blockIdx.x % rows, true);
}

template <class T>
__device__ T warp_max(T v) {
  RC_UNROLL
  for (int step = kWarp / 2; step > 0; step /= 2) {
    v = OneLane<T>::max(v, __shfl_xor_sync(0xFFFFFFFFu, v, step));
  }
  return v;
}

// The binary tree over accumulators: the order of addends does not matter, the pairing does.
template <class T>
__device__ T warp_sum(T v) {
  RC_UNROLL
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, step);
  return v;
}

// Calls add(part) with the part of every segment of a row, in order. compute(first, count) gives
// the warp's segment, all lanes of it; count is 0 past the end, and where the row is not live.
template <class Part, class Compute, class Add>
__device__ void over_segments(const Team& team, bool live, int64_t elements, const Compute& compute,
                              const Add& add) {
  __shared__ Part parts[kWarpsPerBlock];
  const int64_t segments = ceil_div(elements, kSegment), columns = live ? elements : 0;
  RC_ROLL
  for (int64_t wave = 0; wave < segments; wave += team.warps) {
    const int64_t first = (wave + team.member) * kSegment;
    const int64_t left = columns - first;
    const int count = static_cast<int>(left < 0 ? 0 : left < kSegment ? left : kSegment);
    const Part part = compute(first, count);
    if (team.warps == 1) {
      if (count > 0) add(part);
    } else {
      if (team.lane == 0) parts[team.warp] = part;
      __syncthreads();
      for (int i = 0; i < team.warps && (wave + i) * kSegment < columns; ++i) {
        add(parts[i]);
      }
      __syncthreads();
    }
  }
}

// total plus the sum over a row: step(first, end, s) is s plus the terms of a batch of elements,
// first, first + kWarp and so on, before `end`.
template <class T, class Step>
__device__ T sum_over(const Team& team, bool live, int64_t elements, T total, const Step& step) {
  over_segments<T>(
      team, live, elements,
      [&](int64_t first, int count) {
        T s = 0;
        RC_ROLL
        for (int k = team.lane; k < count; k += kWarp * kAhead)
          s = step(first + k, first + count, s);
        return warp_sum(s);
      },
      [&](T part) { total += part; });
  return total;
}

template <class Args>
void launch_rows(void (*kernel)(Args), int warps, int64_t rows, void* stream, const Args& args) {
  if (rows > 0) launch(kernel, ceil_div(rows, rows_at_once(warps)), kThreads, stream, args);
}

template <int kWarps, class Args>
void launch_rows(void (*kernel)(Args), int64_t rows, void* stream, const Args& args) {
  launch_rows(kernel, kWarps, rows, stream, args);
}

// For a kernel with for_shared_rows: several blocks a row where few rows are long.
template <class Args>
void launch_shared_rows(void (*kernel)(Args), int64_t rows, int64_t columns, void* stream,
                        const Args& args) {
  const int warps = team_size(columns);
  const int64_t wanted = rows > 0 ? blocks_wanted() / rows : 0;
  const int64_t shares = ceil_div(columns, kThreads * kAhead);
  const int64_t blocks = wanted < shares ? wanted : shares;
  if (warps == 1 || blocks < 2) return launch_rows(kernel, warps, rows, stream, args);
  launch(kernel, rows * blocks, kThreads, stream, args);
}

}  // namespace
}  // namespace robustcore
