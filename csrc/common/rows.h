// What goes over the rows of a matrix: the order of sums, and values of one a row.
//
// Sums have one order everywhere, so that bits do not depend on the device, the instruction set or
// the threads: a row is cut in segments of kSegment elements; in a segment, element k is added to
// accumulator k % kSums; the accumulators are added as a binary tree (k and k + 16 first), and the
// segments in order.
#pragma once

#include "common/strided.h"

namespace robustcore {

constexpr int kSums = 32;
constexpr int64_t kSegment = 1024;
constexpr int64_t kLongRow = 2 * kSegment;  // a longer one is too much for one warp of a GPU

// One value a row, in the arithmetic type of the matrix: float64 if that is, else float32.
struct PerRow {
  const void* data;  // [rows]
  int64_t stride;
};

// How a GPU goes over rows. Where blocks share one, a launch leaves what its segments add up to in
// memory, another joins that in order, and one more does what needs the result.
enum class Pass : int32_t { kWhole, kSegments, kJoin, kRest };
struct RowPlan {
  Pass pass;
  bool quads;   // of what is read and written element by element: aligned
  void* parts;  // [rows, segments] of two values in the arithmetic type; null: no row is long
};

inline namespace RC_ISA {

template <class T>
RC_HOST_DEVICE T at_row(const PerRow& values, int64_t row) {
  return static_cast<const T*>(values.data)[row * values.stride];
}

// A running sum_k f(x_k / scale) with the maximum that sets its scale.
template <class T>
struct Scaled {
  T max, sum;
};

// Two sums over the same elements.
template <class T>
struct Sums2 {
  T a, b;
};

template <class T>
RC_HOST_DEVICE bool finite(T v) {
  return v - v == T(0);
}

}  // namespace RC_ISA
}  // namespace robustcore
