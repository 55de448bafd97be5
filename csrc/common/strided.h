// A read-only view of a floating tensor as [image, sample, element]: any strides, zero included, so
// scalars, per-image and per-channel values and whole maps look the same to a kernel.
#pragma once

#include "common/dtype.h"

namespace robustcore {

struct StridedView {
  static constexpr int kMaxDims = 6;
  const void* data;  // null: the view is absent
  DType dtype;
  int32_t dims;                                // of the element index, adjacent ones merged; >= 1
  int64_t image_stride, sample_stride;         // in elements, as all strides here
  int64_t sizes[kMaxDims], strides[kMaxDims];  // row-major, the last dimension varies fastest
};

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline namespace RC_ISA {

// Offset of logical element `e` inside one (image, sample). An index of 32 bits, where there are no
// more elements, divides in a fifth of the instructions that a GPU needs for 64.
template <class Index>
RC_HOST_DEVICE int64_t element_offset_in(const StridedView& view, Index e) {
  int64_t offset = 0;
  RC_ROLL
  for (int d = view.dims - 1; d > 0; --d) {
    const Index size = static_cast<Index>(view.sizes[d]), rest = e / size;
    offset += static_cast<int64_t>(e - rest * size) * view.strides[d];
    e = rest;
  }
  return offset + static_cast<int64_t>(e) * view.strides[0];
}
RC_HOST_DEVICE int64_t element_offset(const StridedView& view, int64_t e) {
  return element_offset_in(view, e);
}

// Elements [first, first + count) of one (image, sample), converted into `out`.
template <class T>
RC_HOST_DEVICE void load_elements(const StridedView& view, int64_t image, int64_t sample,
                                  int64_t first, int64_t count, T* out) {
  const int64_t base = image * view.image_stride + sample * view.sample_stride;
  const int last = view.dims - 1;
  const int64_t run_length = view.sizes[last], stride = view.strides[last];
  dispatch(view.dtype, [&](auto tag) {
    using E = decltype(tag);
    const E* data = static_cast<const E*>(view.data) + base;
    for (int64_t done = 0; done < count;) {
      // As far as the innermost dimension runs, the stride is constant.
      const int64_t e = first + done;
      const int64_t left = view.dims == 1 ? count - done : run_length - e % run_length;
      const int64_t n = left < count - done ? left : count - done;
      const E* p = data + element_offset(view, e);
      T* o = out + done;
      if (stride == 1) {
        for (int64_t i = 0; i < n; ++i) o[i] = convert<T>(p[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) o[i] = convert<T>(p[i * stride]);
      }
      done += n;
    }
  });
}

}  // namespace RC_ISA
}  // namespace robustcore
