// The skew part of a filter, seen as a matrix: its adjoint is the filter transposed and flipped.
#pragma once

#include "common/dtype.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::lipschitz {

// out[o, i, t] = (weight[o, i, t] - weight[i, o, taps - 1 - t]) / 2
struct SkewArgs {
  int64_t channels, taps;
  DType dtype;
  const void* weight;  // [channels, channels, taps]
  void* out;
};

constexpr int64_t kSkewRun = 16;  // output channels of a unit: reads of the transpose share lines

inline int64_t skew_units(const SkewArgs& a) {
  return ceil_div(a.channels, kSkewRun);
}

RC_VARIANTS(skew, const SkewArgs& args, int64_t begin, int64_t end);
void skew_cuda(const SkewArgs& args, void* stream);

}  // namespace robustcore::lipschitz
