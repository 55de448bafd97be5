// The CPU kernels of the family, one table per instruction set; simd.cpp is compiled once for each.
#pragma once

#include "common/strided.h"
#include "lipschitz/lipschitz.h"

namespace robustcore::lipschitz {

// A kernel processes units [begin, end) of its work. Units are fixed by the arguments alone, so the
// result does not depend on how threads share them out.
struct SimdKernels {
  void (*skew)(const SkewArgs&, int64_t begin, int64_t end);
  void (*maxmin)(const MaxMinArgs&, int64_t begin, int64_t end);
  void (*swap)(const SwapArgs&, int64_t begin, int64_t end);
  void (*map[3])(const MapArgs&, int64_t begin, int64_t end);  // by Map
  void (*map_backward[3])(const MapBackwardArgs&, int64_t begin, int64_t end);
};

extern const SimdKernels simd_baseline, simd_avx2, simd_avx512;

constexpr int64_t kSkewRun = 16;    // output channels of a unit: reads of the transpose share lines
constexpr int64_t kPairRun = 8192;  // pairs of a unit, a multiple of 8

inline int64_t skew_units(const SkewArgs& a) {
  return ceil_div(a.channels, kSkewRun);
}

// A unit is a part of a long row, or several short rows.
struct PairTiling {
  int64_t rows;   // of a unit
  int64_t parts;  // of a row

  explicit PairTiling(const PairShape& s)
      : rows(s.run() < kPairRun ? kPairRun / s.run() : 1), parts(ceil_div(s.run(), kPairRun)) {}
  int64_t units(const PairShape& s) const {
    return ceil_div(s.rows, rows) * parts;
  }

  // Calls body(row, first, last) with the pairs [first, last) of each row in the units.
  template <class Body>
  void for_each(const PairShape& s, int64_t begin, int64_t end, const Body& body) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row0 = unit / parts * rows, first = unit % parts * kPairRun;
      const int64_t last = first + kPairRun < s.run() ? first + kPairRun : s.run();
      const int64_t row1 = row0 + rows < s.rows ? row0 + rows : s.rows;
      for (int64_t row = row0; row < row1; ++row) body(row, first, last);
    }
  }
};

}  // namespace robustcore::lipschitz
