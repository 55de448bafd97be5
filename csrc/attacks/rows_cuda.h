// Rows of attacks on CUDA: a block each, a lane an element of a batch of kAhead that are read
// together. Values are computed again in every pass, from what the caches hold.
#pragma once

#include "attacks/narrow.h"
#include "attacks/rows.h"
#include "common/rows_cuda.h"

namespace robustcore::attacks {
namespace {

using BlockTeam = Team;  // of all warps of a block

template <class T>
__device__ T element(const StridedView& view, int64_t row, int64_t k) {
  return load_as<T>(view.data, view.dtype, row * view.image_stride + element_offset(view, k));
}

// Narrow types are rounded towards x0.
template <class T>
__device__ void store_element(void* out, const StridedView& place, int64_t row, int64_t k, T value,
                              T x0) {
  const int64_t to = row * place.image_stride + element_offset(place, k);
  dispatch_narrow<T>(place.dtype, [&](auto tag) {
    using E = decltype(tag);
    static_cast<E*>(out)[to] = rounded_towards<E>(value, x0);
  });
}

// What of a row lies where.
struct Source {
  const StridedView* view;
  const void* data;  // as the view's elements lie; null: nothing
};

// The batches that a block's threads have read: of each source kAhead elements a thread, which no
// other thread looks at. Shared memory can be indexed by loops that stay loops.
template <class T, int kSources>
using Staged = T[kSources][kAhead][kThreads];

template <class T, int kSources>
__device__ Staged<T, kSources>& stage() {
  __shared__ Staged<T, kSources> staged;
  return staged;
}

// A thread's batch of a row: elements first, first + kWarp and so on, before `end`; all loads come
// before the first use.
template <class T>
__device__ void read_batch(const Source& from, int64_t row, int64_t first, int64_t end,
                           T (&staged)[kAhead][kThreads]) {
  int64_t place[kAhead];
  RC_UNROLL
  for (int i = 0; i < kAhead; ++i) {
    place[i] = row * from.view->image_stride + element_offset(*from.view, first + i * kWarp);
  }
  dispatch_narrow<T>(from.view->dtype, [&](auto tag) {
    const auto* data = static_cast<const decltype(tag)*>(from.data);
    T values[kAhead];
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      values[i] = first + i * kWarp < end ? convert<T>(data[place[i]]) : T(0);
    }
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) staged[i][threadIdx.x] = values[i];
  });
}

// Own::source(s) says where the row's matrices are, of which staged(s) is the element that f(k, n)
// is called for.
template <class T_, class Own, int kSources>
struct CudaRow {
  using T = T_;
  using L = OneLane<T>;
  struct Part {
    T a, b;
  };
  const BlockTeam& team;
  int64_t elements;
  int64_t at;   // the row's number
  int now = 0;  // the element's in its batch

  __device__ CudaRow(const BlockTeam& team_, int64_t elements_, int64_t row)
      : team(team_), elements(elements_), at(row) {}
  __device__ T staged(int source) const {
    return stage<T, kSources>()[source][now][threadIdx.x];
  }

  template <class F>
  __device__ T max(int64_t count, const F& f) {
    T most = 0;
    over_segments<T>(
        team, true, count,
        [&](int64_t first, int in_segment) {
          T m = 0;
          for_lane(first, in_segment, [&](int64_t k) { m = L::max(m, f(k, 1)); });
          return warp_max(m);
        },
        [&](T part) { most = L::max(most, part); });
    return most;
  }

  template <class F>
  __device__ Sums sums(int64_t count, const F& f) {
    Sums total{0, 0};
    over_segments<Part>(
        team, true, count,
        [&](int64_t first, int in_segment) {
          T a = 0, b = 0;
          for_lane(first, in_segment, [&](int64_t k) { f(k, 1, a, b); });
          return Part{warp_sum(a), warp_sum(b)};
        },
        [&](Part part) { total.a += part.a, total.b += part.b; });
    return total;
  }

  // out[k] = f(k, 1) for the elements of [first, first + count); narrow types are rounded towards
  // x0(k, 1), 0 where none is given.
  template <class F, class X0>
  __device__ void write_rounded(void* out, const StridedView& place, int64_t first, int64_t count,
                                const F& f, const X0& x0) {
    team.for_batches(count, false, [&](int64_t begin, int) {
      for_batch(first + begin, first + count,
                [&](int64_t k) { store_element(out, place, at, k, f(k, 1), x0(k, 1)); });
    });
  }

 private:
  // Calls body(k) for the elements of a batch.
  template <class Body>
  __device__ void for_batch(int64_t first, int64_t end, const Body& body) {
    if constexpr (kSources > 0) {
      RC_ROLL
      for (int s = 0; s < kSources; ++s) {
        const Source from = static_cast<const Own*>(this)->source(s);
        if (from.data) read_batch(from, at, first, end, stage<T, kSources>()[s]);
      }
    }
    RC_ROLL
    for (now = 0; now < kAhead; ++now) {
      const int64_t k = first + now * kWarp;
      if (k < end) body(k);
    }
  }

  template <class Body>
  __device__ void for_lane(int64_t first, int in_segment, const Body& body) {
    RC_ROLL
    for (int k = team.lane; k < in_segment; k += kWarp * kAhead) {
      for_batch(first + k, first + in_segment, body);
    }
  }
};

}  // namespace
}  // namespace robustcore::attacks
