// Rows on the CPU: vectors over a segment, its sum in the one order, and segments of any layout and
// dtype in and out.
#pragma once

#include "common/rows.h"

namespace robustcore {
inline namespace RC_ISA {
namespace {

template <class L>
constexpr int kWays = kSums / L::kFloats;  // vectors that hold the accumulators

template <class T>
constexpr DType kDType = sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;

// Calls step(i, n, way): n lanes from element i on, of accumulator vector `way`; n is below
// L::kFloats only at the end.
template <class L, class Step>
RC_HOST_DEVICE void for_lanes(int64_t count, const Step& step) {
  constexpr int w = L::kFloats;
  const int64_t whole = count / kSums * kSums;
  for (int64_t i = 0; i < whole; i += kSums) {
#pragma GCC unroll 4
    for (int way = 0; way < kWays<L>; ++way) step(i + way * w, w, way);
  }
  // The ways are written out here too, or the accumulators would live in memory.
#pragma GCC unroll 4
  for (int way = 0; way < kWays<L>; ++way) {
    const int64_t i = whole + way * w;
    if (i < count) step(i, static_cast<int>(count - i < w ? count - i : w), way);
  }
}

template <class L>
RC_HOST_DEVICE typename L::Float load(const typename L::Real* p, int n, typename L::Real pad) {
  return n == L::kFloats ? L::load(p) : L::load_partial(p, n, pad);
}

template <class L>
RC_HOST_DEVICE void store(typename L::Real* p, typename L::Float v, int n) {
  if (n == L::kFloats) {
    L::store(p, v);
  } else {
    L::store_partial(p, v, n);
  }
}

template <class T>
RC_HOST_DEVICE T tree(T (&a)[kSums]) {
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
}

// The sum of a segment's accumulators.
template <class L>
RC_HOST_DEVICE typename L::Real lanes_sum(const typename L::Float (&sums)[kWays<L>]) {
  typename L::Real a[kSums];
  for (int way = 0; way < kWays<L>; ++way) L::store(a + way * L::kFloats, sums[way]);
  return tree(a);
}

// The sum over a segment: add(i, n, sum) is sum plus the terms of n elements from i on.
template <class L, class Add>
RC_HOST_DEVICE typename L::Real segment_sum(int64_t count, const Add& add) {
  using T = typename L::Real;
  typename L::Float sums[kWays<L>];
  for (auto& sum : sums) sum = L::splat(T(0));
  for_lanes<L>(count, [&](int64_t i, int n, int way) { sums[way] = add(i, n, sums[way]); });
  return lanes_sum<L>(sums);
}

// The maximum of `least` and value(i, n) over a segment; with a NaN in it, that or the maximum of
// some of the others.
template <class L, class Value>
RC_HOST_DEVICE typename L::Real segment_max(int64_t count, typename L::Real least,
                                            const Value& value) {
  typename L::Float maxima[kWays<L>];
  for (auto& max : maxima) max = L::splat(least);
  for_lanes<L>(count,
               [&](int64_t i, int n, int way) { maxima[way] = L::max(maxima[way], value(i, n)); });
  for (int way = 1; way < kWays<L>; ++way) maxima[0] = L::max(maxima[0], maxima[way]);
  return L::reduce_max(maxima[0]);
}

// Calls body(first, count) with the segments of a row.
template <class Body>
RC_HOST_DEVICE void for_segments(int64_t elements, const Body& body) {
  for (int64_t first = 0; first < elements; first += kSegment) {
    body(first, elements - first < kSegment ? elements - first : kSegment);
  }
}

// Out of line, here and below: loops for each dtype would be copied to every place that has a
// segment, and slow its own loops down.
template <class T>
[[gnu::noinline]] const T* gather_segment(const StridedView& view, int64_t row, int64_t first,
                                          int64_t count, T* buffer) {
  load_elements(view, row, 0, first, count, buffer);
  return buffer;
}

// Elements [first, first + count) of a row: where they lie if they lie right, else in `buffer`.
template <class T>
RC_HOST_DEVICE const T* load_segment(const StridedView& view, int64_t row, int64_t first,
                                     int64_t count, T* buffer) {
  if (view.dtype == kDType<T> && view.dims == 1 && view.strides[0] == 1) {
    return static_cast<const T*>(view.data) + row * view.image_stride + first;
  }
  return gather_segment(view, row, first, count, buffer);
}

// Where the segments of a matrix of results are written: in place, or on the way to another dtype.
template <class T>
class SegmentWriter {
 public:
  // data: [rows, columns]
  SegmentWriter(void* data, DType dtype, int64_t columns)
      : data_(data), dtype_(dtype), columns_(columns) {}

  T* begin(int64_t row, int64_t first) {
    at_ = row * columns_ + first;
    return dtype_ == kDType<T> ? static_cast<T*>(data_) + at_ : buffer_;
  }
  void end(const T* written, int64_t count) {
    if (written == buffer_) convert_buffer(count);
  }

 private:
  [[gnu::noinline]] void convert_buffer(int64_t count) {
    dispatch(dtype_, [&](auto tag) {
      auto* to = static_cast<decltype(tag)*>(data_) + at_;
      for (int64_t i = 0; i < count; ++i) to[i] = convert<decltype(tag)>(buffer_[i]);
    });
  }

  void* data_;
  DType dtype_;
  int64_t columns_, at_ = 0;
  T buffer_[kSegment];
};

}  // namespace
}  // namespace RC_ISA
}  // namespace robustcore
