// out = a b, or out += a b: float32 matrices of any strides, on the CPU.
//
// BLAS libraries choose their kernels by the processor's maker, and give some that have AVX-512 the
// ones of AVX2: half the speed. Each element of out is one chain of fused multiply-adds in the
// order of the summed index, so its bits depend on neither threads nor instruction set.
#pragma once

#include <cstdint>

#include "common/variants.h"

namespace robustcore::density {

struct ProductArgs {
  // Rows of a unit of work, columns of a packed panel of b, and steps of the summed index that a
  // panel and as many rows as kBlock units stay in the caches for.
  static constexpr int64_t kRows = 12, kPanel = 32, kSteps = 256, kBlock = 16;

  int64_t rows, columns, steps;
  const float* a;  // [rows, steps]
  int64_t a_row, a_step;
  const float* b;  // [steps, columns]
  int64_t b_step, b_column;
  float* out;  // [rows, columns], columns side by side
  int64_t out_row;
  bool add;
  float* packed;  // b: [panels, steps, kPanel]

  int64_t panels() const {
    return (columns + kPanel - 1) / kPanel;
  }
  int64_t units() const {
    return (rows + kRows - 1) / kRows;
  }
  static constexpr int64_t scratch() {
    return (kBlock * kSteps + kPanel) * kRows;
  }
};

// Packs panels [begin, end) of b; then multiplies units [begin, end) of rows.
RC_WIDE_VARIANTS(pack_panels, const ProductArgs& args, int64_t begin, int64_t end);
RC_WIDE_VARIANTS(multiply_packed, const ProductArgs& args, float* scratch, int64_t begin,
                 int64_t end);

}  // namespace robustcore::density
