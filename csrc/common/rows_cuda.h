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
// The same of kernels that sum along rows which blocks may share.
template <class In>
constexpr int kSumBlocks = sizeof(In) == sizeof(double) ? 2 : 3;

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
  // Calls body(first, step) for kAhead columns of this thread at a time, first, first + step and so
  // on: a quad side by side, or a warp's width apart.
  template <class Body>
  __device__ void for_batches(int64_t columns, bool quads, const Body& body) const {
    constexpr int kBatch = kWarp * kAhead;
    const int step = quads ? 1 : kWarp, at = quads ? lane * kAhead : lane;
    RC_ROLL
    for (int64_t k = (part * warps + member) * kBatch + at; k < columns;
         k += blocks * warps * kBatch) {
      body(k, step);
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

  // Those of a batch.
  __device__ void read_batch(int64_t first, int step, int64_t end, T (&values)[kAhead]) const {
    if (step != 1) return read(first, end, values);
    dispatch_narrow<T>(view.dtype, [&](auto tag) {
      using E = decltype(tag);
      const E* from = static_cast<const E*>(view.data) + begin + first;
      const auto quad = *reinterpret_cast<const Quad<E>*>(from);
      RC_UNROLL
      for (int i = 0; i < kAhead; ++i) values[i] = convert<T>(quad.v[i]);
    });
  }
};

// The reverse, for a contiguous matrix whose row begins at element `begin` of `data`.
template <class T>
__device__ void write_batch(void* data, DType dtype, int64_t begin, int64_t first, int step,
                            int64_t end, const T (&values)[kAhead]) {
  dispatch_narrow<T>(dtype, [&](auto tag) {
    using E = decltype(tag);
    E* const to = static_cast<E*>(data) + begin + first;
    Quad<E> quad;
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) quad.v[i] = convert<E>(values[i]);
    if (step == 1) {
      *reinterpret_cast<Quad<E>*>(to) = quad;
      return;
    }
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kWarp < end) to[i * kWarp] = quad.v[i];
    }
  });
}

// Whether rows of a view are aligned quads, or those of a contiguous matrix.
inline bool in_quads(const StridedView& view) {
  return view.dims == 1 && view.strides[0] == 1 && view.sizes[0] % kAhead == 0 &&
         view.image_stride % kAhead == 0 && is_aligned(view.data);
}
inline bool in_quads(const void* data, int64_t columns) {
  return columns % kAhead == 0 && is_aligned(data);
}

RC_HOST_DEVICE int segments_of(int64_t elements) {
  return static_cast<int>(ceil_div(elements, kSegment));
}

// The row's of RowPlan::parts.
template <class Part>
RC_HOST_DEVICE Part* parts_of(const RowPlan& plan, int64_t row, int64_t elements) {
  return static_cast<Part*>(plan.parts) + row * segments_of(elements);
}

// How many warps share a row of so many elements.
RC_HOST_DEVICE int team_size(int64_t elements) {
  return elements <= kLongRow ? 1 : kWarpsPerBlock;
}
RC_HOST_DEVICE int team_size(const RowPlan& plan, int64_t elements) {
  return plan.pass == Pass::kJoin ? 1 : team_size(elements);
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

// The same where blocks may share a row: for_batches and over_segments give a team its share.
template <class Body>
__device__ void for_shared_rows(int warps, int64_t rows, const Body& body) {
  Team team(warps);
  int64_t first = blockIdx.x, step = gridDim.x;
  if (warps > 1 && gridDim.x > rows) {
    team.blocks = static_cast<int>(gridDim.x / rows);
    team.part = static_cast<int>(blockIdx.x / rows);
    first = blockIdx.x % rows, step = rows;
  }
  const int64_t at_once = rows_at_once(warps);
  for (first *= at_once; first < rows; first += step * at_once) {
    const int64_t row = first + team.row;
    body(team, row < rows ? row : 0, row < rows);
  }
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

// Calls add(part) with the part of every segment of a row, in order; or, with a row of `parts`,
// leaves them there. compute(first, count) gives the warp's segment, all lanes of it; count is 0
// past the end, and where the row is not live.
template <class Part, class Compute, class Add>
__device__ void over_segments(const Team& team, bool live, int64_t elements, const Compute& compute,
                              const Add& add, Part* parts = nullptr) {
  __shared__ Part shared[kWarpsPerBlock];
  const int64_t columns = live ? elements : 0;
  const int segments = segments_of(elements);
  RC_ROLL
  for (int wave = team.part * team.warps; wave < segments; wave += team.blocks * team.warps) {
    const int64_t first = (wave + team.member) * kSegment;
    const int64_t left = columns - first;
    const int count = static_cast<int>(left < 0 ? 0 : left < kSegment ? left : kSegment);
    const Part part = compute(first, count);
    if (parts) {
      if (team.lane == 0 && count > 0) parts[wave + team.member] = part;
    } else if (team.warps == 1) {
      if (count > 0) add(part);
    } else {
      if (team.lane == 0) shared[team.warp] = part;
      __syncthreads();
      for (int i = 0; i < team.warps && (wave + i) * kSegment < columns; ++i) {
        add(shared[i]);
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

// The two sums over a row, from `total` on, by the pass: step(first, end, s) adds to both.
template <class T, class Step>
__device__ Sums2<T> sums_over(const RowPlan& plan, const Team& team, int64_t row, bool live,
                              int64_t elements, Sums2<T> total, const Step& step) {
  auto* const parts = parts_of<Sums2<T>>(plan, row, elements);
  if (plan.pass == Pass::kJoin) {
    const int segments = segments_of(elements);
    RC_ROLL
    for (int wave = 0; wave < segments; wave += kWarp) {
      const Sums2<T> part = wave + team.lane < segments ? parts[wave + team.lane] : Sums2<T>{};
      RC_ROLL
      for (int i = 0; i < kWarp && wave + i < segments; ++i) {
        total.a += __shfl_sync(0xFFFFFFFFu, part.a, i);
        total.b += __shfl_sync(0xFFFFFFFFu, part.b, i);
      }
    }
    return total;
  }
  over_segments<Sums2<T>>(
      team, live, elements,
      [&](int64_t first, int count) {
        Sums2<T> s{0, 0};
        RC_ROLL
        for (int k = team.lane; k < count; k += kWarp * kAhead) step(first + k, first + count, s);
        return Sums2<T>{warp_sum(s.a), warp_sum(s.b)};
      },
      [&](Sums2<T> part) { total.a += part.a, total.b += part.b; },
      plan.pass == Pass::kSegments ? parts : nullptr);
  return total;
}

// total and the parts of a row as one, in order: what add_exp and add_power do, a lane an addend.
// weight(m, max) is that of a sum scaled by m in one scaled by max.
template <class T, class Weight>
__device__ Scaled<T> join_scaled(const Team& team, const Scaled<T>* parts, int segments,
                                 Scaled<T> total, const Weight& weight) {
  using L = OneLane<T>;
  RC_ROLL
  for (int wave = 0; wave < segments; wave += kWarp) {
    const int count = segments - wave < kWarp ? segments - wave : kWarp;
    const auto part = team.lane < count ? parts[wave + team.lane] : Scaled<T>{total.max, T(0)};
    T max = part.max;  // of the parts up to this lane's
    RC_ROLL
    for (int step = 1; step < kWarp; step *= 2) {
      const T before = __shfl_sync(0xFFFFFFFFu, max, team.lane - step);
      if (team.lane >= step) max = L::max(before, max);
    }
    max = L::max(total.max, max);
    const T before = __shfl_sync(0xFFFFFFFFu, max, team.lane - 1);
    const T old = weight(team.lane == 0 ? total.max : before, max);
    const T added = part.sum * weight(part.max, max);
    RC_ROLL
    for (int i = 0; i < count; ++i) {
      total.sum =
          L::fma(total.sum, __shfl_sync(0xFFFFFFFFu, old, i), __shfl_sync(0xFFFFFFFFu, added, i));
    }
    total.max = __shfl_sync(0xFFFFFFFFu, max, count - 1);
  }
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

// How many blocks share a row in `shares` that can be told apart: several where few rows are long.
inline int64_t blocks_a_row(int64_t rows, int64_t columns, int64_t shares) {
  const int64_t wanted = rows > 0 && columns > kLongRow ? blocks_wanted() / rows : 0;
  const int64_t blocks = wanted < shares ? wanted : shares;
  return blocks < 2 ? 1 : blocks;
}

// For a kernel with for_shared_rows that sums nothing, or no more.
template <class Args>
void launch_shared_rows(void (*kernel)(Args), int64_t rows, int64_t columns, void* stream,
                        Args args) {
  args.plan.pass = Pass::kRest;
  const int64_t blocks = blocks_a_row(rows, columns, ceil_div(columns, kThreads * kAhead));
  if (blocks == 1) return launch_rows(kernel, team_size(columns), rows, stream, args);
  launch(kernel, rows * blocks, kThreads, stream, args);
}

// For one that sums along rows: at once, or in passes.
template <class Args>
void launch_summed_rows(void (*kernel)(Args), int64_t rows, int64_t columns, void* stream,
                        Args args, bool rest) {
  const int64_t shares = ceil_div(columns, kSegment * kWarpsPerBlock);
  const int64_t blocks = args.plan.parts ? blocks_a_row(rows, columns, shares) : 1;
  if (blocks == 1) {
    args.plan.pass = Pass::kWhole;
    return launch_rows(kernel, team_size(columns), rows, stream, args);
  }
  args.plan.pass = Pass::kSegments;
  launch(kernel, rows * blocks, kThreads, stream, args);
  args.plan.pass = Pass::kJoin;
  launch_rows(kernel, 1, rows, stream, args);
  if (rest) launch_shared_rows(kernel, rows, columns, stream, args);
}

}  // namespace
}  // namespace robustcore
