// The elementwise tail of a masked convolution: the arguments of its kernels and the arithmetic
// that both devices run.
#pragma once

#include "common/math.h"
#include "common/strided.h"
#include "common/variants.h"
#include "masking/view.h"

namespace robustcore::masking {

// out = relu(x * scale + shift) * mask, each part optional.
struct EpilogueArgs {
  int64_t images, channels, rows, columns;
  View4 x;            // [images, channels, rows, columns] of out's dtype
  View4 mask;         // [images, 1, rows, columns]; data null: none
  const void* scale;  // [channels] in the arithmetic type; null: 1
  const void* shift;  // [channels] in the arithmetic type; null: 0
  bool relu;
  bool channels_last;  // of x and out, which are dense; else contiguous
  void* out;           // [images, channels, rows, columns], may be x itself
  DType dtype;         // of out
};

RC_VARIANTS(epilogue, const EpilogueArgs& args, int64_t begin, int64_t end);
void epilogue_cuda(const EpilogueArgs& args, void* stream);

// Units on the CPU: planes in logical order; rows of pixels where channels are adjacent.
inline int64_t epilogue_units(const EpilogueArgs& a) {
  return a.images * (a.channels_last ? a.rows : a.channels);
}

inline namespace RC_ISA {

template <class T>
RC_HOST_DEVICE T epilogue(T x, T scale, T shift, bool affine, bool relu, T m) {
  T v = affine ? fused_multiply_add(x, scale, shift) : x;
  if (relu) v = v < T(0) ? T(0) : v;
  return masked(v, m);
}

}  // namespace RC_ISA
}  // namespace robustcore::masking
