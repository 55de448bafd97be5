// The CPU kernels of the family, one table per instruction set; simd*.cpp are compiled once for
// each.
#pragma once

#include "density/batch_norm.h"
#include "density/conv.h"
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
  // Null in the baseline, which has no vectors worth it. Units: ConvPlan's groups, lanes of output
  // channels, and ConvGradientPlan's. `scratch` is 64-byte aligned.
  void (*conv)(const ConvArgs&, float* scratch, int64_t begin, int64_t end);
  void (*conv_kernel)(const ConvKernelArgs&, int64_t begin, int64_t end);
  void (*conv_factors)(const ConvGradientArgs&, float* scratch, int64_t begin, int64_t end);
  void (*conv_gradient)(const ConvGradientArgs&, float* scratch, int64_t begin, int64_t end);
  int64_t conv_block;  // channels of a column block, by which channels are padded
};

#if defined(__AVX2__)
inline namespace RC_ISA {  // in simd_conv.cpp
void conv(const ConvArgs& args, float* scratch, int64_t begin, int64_t end);
void conv_kernel(const ConvKernelArgs& args, int64_t begin, int64_t end);
void conv_factors(const ConvGradientArgs& args, float* scratch, int64_t begin, int64_t end);
void conv_gradient(const ConvGradientArgs& args, float* scratch, int64_t begin, int64_t end);
}  // namespace RC_ISA
#endif

extern const SimdKernels simd_baseline, simd_avx2, simd_avx512;

}  // namespace robustcore::density
