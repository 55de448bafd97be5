// Small matrix products on the CPU: a matrix in a cache by another, no packing. Each element of the
// result is one chain of fused multiply-adds in the order of the summed index, whatever the lanes.
#pragma once

#include "common/rows_simd.h"

namespace robustcore {
inline namespace RC_ISA {
namespace {

// Element (i, s) of the left factor.
template <class T>
struct LeftFactor {
  const T* data;
  int64_t row, step;
};

// c[kRows, columns] = (c or 0) + sum_s left[i, s] b[s, columns], columns at most kVectors vectors;
// where not kFull, the last one holds `last` values.
template <class L, int kRows, int kVectors, bool kFull, class T = typename L::Real>
RC_HOST_DEVICE void multiply_block(const LeftFactor<T>& left, const T* b, int64_t b_step,
                                   int64_t steps, T* c, int64_t c_row, bool add, int last) {
  constexpr int w = L::kFloats;
  const auto lanes = [&](int v) { return kFull || v + 1 < kVectors ? w : last; };
  typename L::Float sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = add ? load<L>(c + i * c_row + v * w, lanes(v), T(0)) : L::splat(T(0));
    }
  }
  for (int64_t s = 0; s < steps; ++s) {
    typename L::Float right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = load<L>(b + s * b_step + v * w, lanes(v), T(0));
    const T* a = left.data + s * left.step;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const auto factor = L::splat(a[i * left.row]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[i][v] = L::fma(factor, right[v], sums[i][v]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store<L>(c + i * c_row + v * w, sums[i][v], lanes(v));
  }
}

// All rows of one block of columns. Out of line: one copy of the loops serves every product.
template <class L, int kVectors, bool kFull, class T = typename L::Real>
[[gnu::noinline]] void multiply_columns(LeftFactor<T> left, const T* b, int64_t b_step,
                                        int64_t rows, int64_t steps, T* c, int64_t c_row, bool add,
                                        int last) {
  // As many accumulators as registers hold beside a row's factors.
  constexpr int kRows = L::kFloats == 16 ? 12 : L::kFloats == 8 ? 6 : 4;
  int64_t i = 0;
  const auto take = [&](auto count) {
    constexpr int n = count();
    for (; i + n <= rows; i += n) {
      const LeftFactor<T> from{left.data + i * left.row, left.row, left.step};
      multiply_block<L, n, kVectors, kFull>(from, b, b_step, steps, c + i * c_row, c_row, add,
                                            last);
    }
  };
  take(std::integral_constant<int, kRows>{});
  if constexpr (kRows > 4) take(std::integral_constant<int, 3>{});
  take(std::integral_constant<int, 1>{});
}

// c[rows, columns] = (c or 0) + left[rows, steps] b[steps, columns], rows of b and c b_step and
// c_row apart.
template <class L, class T = typename L::Real>
void multiply(LeftFactor<T> left, const T* b, int64_t b_step, int64_t rows, int64_t columns,
              int64_t steps, T* c, int64_t c_row, bool add) {
  constexpr int w = L::kFloats;
  int64_t at = 0;
  for (; at + 2 * w <= columns; at += 2 * w) {
    multiply_columns<L, 2, true>(left, b + at, b_step, rows, steps, c + at, c_row, add, w);
  }
  if (at + w < columns) {
    const int last = static_cast<int>(columns - at - w);
    multiply_columns<L, 2, false>(left, b + at, b_step, rows, steps, c + at, c_row, add, last);
  } else if (at < columns) {
    const int last = static_cast<int>(columns - at);
    multiply_columns<L, 1, false>(left, b + at, b_step, rows, steps, c + at, c_row, add, last);
  }
}

}  // namespace
}  // namespace RC_ISA
}  // namespace robustcore
