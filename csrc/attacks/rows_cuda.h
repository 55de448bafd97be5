// Rows of attacks on CUDA: a block each, a lane an element of a batch of kAhead that are read
// together. Values are computed again in every pass, from what the caches hold.
#pragma once

#include "attacks/narrow.h"
#include "attacks/rows.h"
#include "common/rows_cuda.h"

namespace robustcore::attacks {
namespace {

using BlockTeam = Team;  // of all warps of a block

// Own::read(first, end) reads the batch first, first + kWarp and so on, before `end`; Own::take(i)
// makes its i-th element the one that f(k, n) is called for.
template <class T_, class Own>
struct CudaRow {
  using T = T_;
  using L = OneLane<T>;
  struct Part {
    T a, b;
  };
  const BlockTeam& team;
  int64_t elements;

  __device__ CudaRow(const BlockTeam& team_, int64_t elements_)
      : team(team_), elements(elements_) {}

  template <class F>
  __device__ T max(int64_t count, const F& f) {
    T most = 0;
    over_segments<T>(
        team, true, count,
        [&](int64_t first, int in_segment) {
          T m = 0;
          for_lane(first, in_segment, [&](int64_t k, int) { m = L::max(m, f(k, 1)); });
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
          for_lane(first, in_segment, [&](int64_t k, int) { f(k, 1, a, b); });
          return Part{warp_sum(a), warp_sum(b)};
        },
        [&](Part part) { total.a += part.a, total.b += part.b; });
    return total;
  }

  // Calls body(k, i) for the elements of a batch.
  template <class Body>
  __device__ void for_batch(int64_t first, int64_t end, const Body& body) {
    auto* const own = static_cast<Own*>(this);
    own->read(first, end);
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = first + i * kWarp;
      own->take(i);
      if (k < end) body(k, i);
    }
  }

  // out[k] = f(k, 1) for the elements of [first, first + count); narrow types are rounded towards
  // x0(k, 1), 0 where none is given.
  template <class F, class X0>
  __device__ void write_rounded(void* out, const StridedView& place, int64_t row, int64_t first,
                                int64_t count, const F& f, const X0& x0) {
    team.for_batches(count, false, [&](int64_t begin, int) {
      T values[kAhead] = {}, centers[kAhead] = {};
      for_batch(first + begin, first + count,
                [&](int64_t k, int i) { values[i] = f(k, 1), centers[i] = x0(k, 1); });
      dispatch_narrow<T>(place.dtype, [&](auto tag) {
        using E = decltype(tag);
        E* const to = static_cast<E*>(out) + row * place.image_stride;
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          if (begin + i * kWarp < count) {
            to[element_offset(place, first + begin + i * kWarp)] =
                rounded_towards<E>(values[i], centers[i]);
          }
        }
      });
    });
  }

 private:
  template <class Body>
  __device__ void for_lane(int64_t first, int in_segment, const Body& body) {
    RC_ROLL
    for (int k = team.lane; k < in_segment; k += kWarp * kAhead) {
      for_batch(first + k, first + in_segment, body);
    }
  }
};

template <class T>
__device__ T element(const StridedView& view, int64_t row, int64_t k) {
  return load_as<T>(view.data, view.dtype, row * view.image_stride + element_offset(view, k));
}

// The batch of row `row` of what lies at `data` as the view's elements do; nothing where there is
// none.
template <class T>
__device__ void read_batch(const StridedView& view, const void* data, int64_t row, int64_t first,
                           int64_t end, T (&values)[kAhead]) {
  if (!data) return;
  int64_t from[kAhead];
  RC_UNROLL
  for (int i = 0; i < kAhead; ++i) {
    from[i] = row * view.image_stride + element_offset(view, first + i * kWarp);
  }
  dispatch_narrow<T>(view.dtype, [&](auto tag) {
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      values[i] = first + i * kWarp < end
                      ? convert<T>(static_cast<const decltype(tag)*>(data)[from[i]])
                      : T(0);
    }
  });
}

// Narrow types are rounded towards x0.
template <class T>
__device__ void store_element(void* out, DType dtype, const StridedView& place, int64_t row,
                              int64_t k, T value, T x0) {
  const int64_t to = row * place.image_stride + element_offset(place, k);
  dispatch(dtype, [&](auto tag) {
    using E = decltype(tag);
    static_cast<E*>(out)[to] = rounded_towards<E>(value, x0);
  });
}

}  // namespace
}  // namespace robustcore::attacks
