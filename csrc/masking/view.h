// What a mask is laid over, as the kernels of both topics see it.
#pragma once

#include "common/dtype.h"

namespace robustcore::masking {

// A tensor [images, channels, rows, columns]; a broadcast dimension has stride 0.
struct View4 {
  const void* data;
  DType dtype;
  int64_t strides[4];  // in elements
};

inline namespace RC_ISA {

RC_HOST_DEVICE int64_t offset_of(const int64_t (&strides)[4], int64_t image, int64_t channel,
                                 int64_t row, int64_t column) {
  return image * strides[0] + channel * strides[1] + row * strides[2] + column * strides[3];
}

// Elements [column, column + count) of a row, converted into `to`.
template <class T>
RC_HOST_DEVICE void load_row(const View4& view, int64_t image, int64_t channel, int64_t row,
                             int64_t column, int64_t count, T* to) {
  const int64_t first = offset_of(view.strides, image, channel, row, column);
  const int64_t stride = view.strides[3];
  dispatch(view.dtype, [&](auto tag) {
    const auto* from = static_cast<const decltype(tag)*>(view.data) + first;
    if (stride == 1) {
      for (int64_t c = 0; c < count; ++c) to[c] = convert<T>(from[c]);
    } else {
      for (int64_t c = 0; c < count; ++c) to[c] = convert<T>(from[c * stride]);
    }
  });
}

// What is hidden is not read: 0 * NaN would be NaN.
template <class T>
RC_HOST_DEVICE T masked(T x, T m) {
  return m == T(0) ? T(0) : x * m;
}

}  // namespace RC_ISA
}  // namespace robustcore::masking
