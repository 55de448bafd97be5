// The CPU kernels of the family, one table per instruction set; simd*.cpp are compiled once for
// each.
#pragma once

#include "density/batch_norm.h"
#include "density/density.h"

namespace robustcore::density {

// A kernel processes rows (of batch_norm, units) [begin, end). One is summed by one thread, so the
// result does not depend on how threads share them out.
struct SimdKernels {
  void (*lse)(const LseArgs&, int64_t begin, int64_t end);
  void (*lse_grad)(const LseGradArgs&, int64_t begin, int64_t end);
  void (*lse_hess)(const LseHessArgs&, int64_t begin, int64_t end);
  void (*norm)(const NormArgs&, int64_t begin, int64_t end);
  void (*norm_grad)(const NormGradArgs&, int64_t begin, int64_t end);
  void (*norm_hess)(const NormHessArgs&, int64_t begin, int64_t end);
  void (*batch_norm_sums)(const BatchNormArgs&, int64_t begin, int64_t end);
  void (*batch_norm_write)(const BatchNormArgs&, int64_t begin, int64_t end);
};

extern const SimdKernels simd_baseline, simd_avx2, simd_avx512;

}  // namespace robustcore::density
