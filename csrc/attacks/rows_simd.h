// Rows of attacks on the CPU: whole ones, where they lie if they lie right, else converted.
#pragma once

#include "attacks/narrow.h"
#include "attacks/rows.h"
#include "common/rows_simd.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

template <class T_>
struct SimdRow {
  using T = T_;
  using L = LanesOf<T>;
  int64_t elements;

  template <class F>
  T max(int64_t count, const F& f) const {
    T most = 0;
    for_segments(count, [&](int64_t first, int64_t in_segment) {
      const T part =
          segment_max<L>(in_segment, T(0), [&](int64_t i, int n) { return f(first + i, n); });
      most = OneLane<T>::max(most, part);
    });
    return most;
  }

  template <class F>
  Sums sums(int64_t count, const F& f) const {
    Sums total{0, 0};
    for_segments(count, [&](int64_t first, int64_t in_segment) {
      typename L::Float a[kWays<L>], b[kWays<L>];
      for (int way = 0; way < kWays<L>; ++way) a[way] = b[way] = L::splat(T(0));
      for_lanes<L>(in_segment, [&](int64_t i, int n, int way) { f(first + i, n, a[way], b[way]); });
      total.a += lanes_sum<L>(a), total.b += lanes_sum<L>(b);
    });
    return total;
  }
};

// Where a row's results go: place says where elements lie, and dtype of what; narrow ones are
// rounded towards x0, null: 0.
template <class T>
struct RowOutput {
  using L = LanesOf<T>;
  void* out;
  const StridedView& place;
  DType dtype;
  int64_t row;
  const T* x0;

  // f(k, n) at `count` elements from `first` on.
  template <class F>
  void write(int64_t first, int64_t count, const F& f) const {
    const bool in_place = dtype == kDType<T> && place.dims == 1 && place.strides[0] == 1;
    T buffer[kSegment];
    for_segments(count, [&](int64_t i, int64_t in_segment) {
      const int64_t from = first + i;
      T* to = in_place ? static_cast<T*>(out) + row * place.image_stride + from : buffer;
      for_lanes<L>(in_segment, [&](int64_t j, int n, int) { store<L>(to + j, f(from + j, n), n); });
      if (!in_place) scatter(from, in_segment, buffer);
    });
  }

 private:
  [[gnu::noinline]] void scatter(int64_t first, int64_t count, const T* values) const {
    dispatch(dtype, [&](auto tag) {
      using E = decltype(tag);
      E* const to = static_cast<E*>(out) + row * place.image_stride;
      for (int64_t i = 0; i < count; ++i) {
        to[element_offset(place, first + i)] =
            rounded_towards<E>(values[i], x0 ? x0[first + i] : T(0));
      }
    });
  }
};

// A whole row in T: where it lies, or in `buffer`.
template <class T>
const T* whole_row(const StridedView& view, int64_t row, int64_t elements, T* buffer) {
  return view.data ? load_segment(view, row, 0, elements, buffer) : nullptr;
}

}  // namespace
}  // namespace RC_ISA
}  // namespace robustcore::attacks
