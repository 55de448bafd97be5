// Masking: filling what a mask hides from its neighbours, and the elementwise tail of a masked
// convolution: the arguments of the kernels and the arithmetic that both devices run.
//
// The fill: x_0 = x * m_0, then `iters` times
//   x_{t+1} = x_t + w_t * B x_t,   w_t = (1 - m_t) / (B m_t + 1e-5),   m_{t+1} = min(m_t + B m_t,
//   1)
// with B the 3x3 box sum, zeros outside the image. A sum has one order everywhere, (left + centre)
// + right in a row and (upper + middle) + lower of the rows, so bits do not depend on the device,
// the instruction set, the layout or the tiles. Where m is 0 nothing of x is read, not even a NaN.
#pragma once

#include "common/math.h"
#include "common/strided.h"

namespace robustcore::masking {

// Iterations of one pass, which set the width of a tile's halo. More are made of several passes.
constexpr int kMaxIters = 8;
constexpr int kMaxItersTransposed = 4;

// A tensor [images, channels, rows, columns]; a broadcast dimension has stride 0.
struct View4 {
  const void* data;
  DType dtype;
  int64_t strides[4];
};

enum class FillMode : int32_t {
  kFill,       // out = x_iters
  kTranspose,  // the same linear map of x, transposed
  kState,      // out = m_iters; x is not read
};

struct FillArgs {
  int64_t images, channels, rows, columns;
  View4 x;     // [images, channels, rows, columns]
  View4 mask;  // [images, 1, rows, columns]
  int32_t iters;
  bool multiply;  // x by the mask; else x_0 = x
  FillMode mode;
  bool in_place;  // out is x: planes are not cut, so that no tile reads what another wrote
  void* out;      // x's dtype (the mask's in kState)
  DType dtype;
  int64_t out_strides[4];
};

// How far outside a tile its values come from. The transposed map begins with the last iteration's
// weights, which are themselves that many iterations away from the mask.
constexpr int64_t halo_of(const FillArgs& args) {
  return args.mode == FillMode::kTranspose ? 2 * args.iters : args.iters;
}

// out = relu(x * scale + shift) * mask, each part optional.
struct EpilogueArgs {
  int64_t images, channels, rows, columns;
  View4 x;            // out's dtype
  View4 mask;         // data null: none
  const void* scale;  // [channels] in the arithmetic type; null: 1
  const void* shift;  // [channels] in the arithmetic type; null: 0
  bool relu;
  bool channels_last;  // of x and out, which are dense; else contiguous
  void* out;           // [images, channels, rows, columns], may be x itself
  DType dtype;         // of out
};

inline namespace RC_ISA {

RC_HOST_DEVICE int64_t offset_of(const int64_t (&strides)[4], int64_t image, int64_t channel,
                                 int64_t row, int64_t column) {
  return image * strides[0] + channel * strides[1] + row * strides[2] + column * strides[3];
}

template <class T>
RC_HOST_DEVICE T fill_weight(T m, T visible) {
  return (T(1) - m) / (visible + T(1e-5));
}

template <class T>
RC_HOST_DEVICE T next_mask(T m, T visible) {
  return m + visible < T(1) ? m + visible : T(1);
}

// What is hidden is not read: 0 * NaN would be NaN.
template <class T>
RC_HOST_DEVICE T masked(T x, T m) {
  return m == T(0) ? T(0) : x * m;
}

RC_HOST_DEVICE float multiply_add(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
RC_HOST_DEVICE double multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}

// Where nothing is to fill, x stays as it is, whatever its neighbours are.
template <class T>
RC_HOST_DEVICE T filled(T x, T weight, T sum) {
  return weight == T(0) ? x : multiply_add(weight, sum, x);
}

template <class T>
RC_HOST_DEVICE T epilogue(T x, T scale, T shift, bool affine, bool relu, T m) {
  T v = affine ? multiply_add(x, scale, shift) : x;
  if (relu) v = v < T(0) ? T(0) : v;
  return masked(v, m);
}

}  // namespace RC_ISA
}  // namespace robustcore::masking
