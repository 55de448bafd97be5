// Rows of attacks on CUDA: a block each, a lane an element. Values are computed again in every
// pass, from what the caches hold.
#pragma once

#include "attacks/narrow.h"
#include "attacks/rows.h"
#include "common/rows_cuda.h"

namespace robustcore::attacks {
namespace {

using BlockTeam = Team;  // of all warps of a block

template <class T_>
struct CudaRow {
  using T = T_;
  using L = OneLane<T>;
  struct Part {
    T a, b;
  };
  const BlockTeam& team;
  int64_t elements;

  template <class F>
  __device__ T max(int64_t count, const F& f) const {
    T most = 0;
    over_segments<T>(
        team, true, count,
        [&](int64_t first, int in_segment) {
          T m = 0;
          RC_ROLL
          for (int k = team.lane; k < in_segment; k += kWarp) m = L::max(m, f(first + k, 1));
          return warp_max(m);
        },
        [&](T part) { most = L::max(most, part); });
    return most;
  }

  template <class F>
  __device__ Sums sums(int64_t count, const F& f) const {
    Sums total{0, 0};
    over_segments<Part>(
        team, true, count,
        [&](int64_t first, int in_segment) {
          T a = 0, b = 0;
          RC_ROLL
          for (int k = team.lane; k < in_segment; k += kWarp) f(first + k, 1, a, b);
          return Part{warp_sum(a), warp_sum(b)};
        },
        [&](Part part) { total.a += part.a, total.b += part.b; });
    return total;
  }
};

template <class T>
__device__ T element(const StridedView& view, int64_t row, int64_t k) {
  return load_as<T>(view.data, view.dtype, row * view.image_stride + element_offset(view, k));
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
