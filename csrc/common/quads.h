// Four neighbouring elements of a view at a time, as a CUDA thread reads and writes them.
#pragma once

#include "common/cuda.h"

namespace robustcore {

// How the elements of an aligned quad lie.
enum class Access : int32_t {
  kAbsent,
  kSame,  // all four are one
  kRun,   // one after the other, aligned
  kEach,  // anywhere
};

struct QuadSource {
  StridedView view;
  Access access;
  double absent;  // the value where there is no view

  QuadSource() = default;
  QuadSource(const StridedView& view_, double absent_)
      : view(view_), access(access_of(view_)), absent(absent_) {}

 private:
  static Access access_of(const StridedView& view) {
    if (!view.data) return Access::kAbsent;
    const int last = view.dims - 1;
    if (view.sizes[last] % 4 != 0) return Access::kEach;
    if (view.strides[last] == 0) return Access::kSame;
    bool aligned = view.strides[last] == 1 && view.image_stride % 4 == 0;
    for (int d = 0; d < last; ++d) aligned = aligned && view.strides[d] % 4 == 0;
    dispatch(view.dtype, [&](auto tag) {
      aligned =
          aligned && reinterpret_cast<uintptr_t>(view.data) % alignof(Quad<decltype(tag)>) == 0;
    });
    return aligned ? Access::kRun : Access::kEach;
  }
};

// Offset of element e of `elements`.
__device__ inline int64_t offset_of(const StridedView& view, int64_t e, int64_t elements) {
  if (elements <= UINT32_MAX) return element_offset_in(view, static_cast<uint32_t>(e));
  return element_offset_in(view, e);
}

// Four values one after the other.
template <class T>
__device__ void load_run(const StridedView& view, int64_t at, T* to, int step) {
  dispatch(view.dtype, [&](auto tag) {
    using E = decltype(tag);
    const auto quad = *reinterpret_cast<const Quad<E>*>(static_cast<const E*>(view.data) + at);
    RC_UNROLL
    for (int i = 0; i < 4; ++i) to[i * step] = convert<T>(quad.v[i]);
  });
}

// Elements e to e + 3 of an image, e a multiple of 4, to `to`, `step` apart: a place in shared
// memory, because the one loop over elements that lie anywhere stays rolled.
template <class T>
__device__ void load_quad(const QuadSource& source, int64_t image, int64_t e, int64_t elements,
                          T* to, int step) {
  const StridedView& view = source.view;
  const bool each = source.access == Access::kEach;
  T value = static_cast<T>(source.absent);
  RC_ROLL
  for (int i = 0; i < (each ? 4 : 1) && e + i < elements; ++i) {
    if (source.access == Access::kAbsent) break;
    const int64_t at = image * view.image_stride + offset_of(view, e + i, elements);
    if (source.access == Access::kRun) return load_run(view, at, to, step);
    value = load_as<T>(view.data, view.dtype, at);
    if (each) to[i * step] = value;
  }
  if (each) return;
  RC_UNROLL
  for (int i = 0; i < 4; ++i) to[i * step] = value;
}

}  // namespace robustcore
