// The CPU kernels of the family, one table per instruction set; simd*.cpp are compiled once for
// each.
#pragma once

#include "density/conv.h"

namespace robustcore::density {

struct SimdKernels {
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
