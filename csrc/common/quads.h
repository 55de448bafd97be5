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
  bool repeats;   // its quads lie where those of the source before do
  Divisor sizes[StridedView::kMaxDims];

  QuadSource() = default;
  QuadSource(const StridedView& view_, double absent_)
      : view(view_), access(access_of(view_)), absent(absent_), repeats(false) {
    for (int d = 1; d < view.dims; ++d) sizes[d] = Divisor(view.sizes[d]);
  }

  // Where element e of an image lies.
  __device__ int64_t offset(int64_t image, int64_t e) const {
    int64_t at = image * view.image_stride;
    RC_ROLL
    for (int d = view.dims - 1; d > 0; --d) {
      const int64_t rest = sizes[d].quotient(e);
      at += (e - rest * view.sizes[d]) * view.strides[d];
      e = rest;
    }
    return at + e * view.strides[0];
  }

  void repeat(const QuadSource& before) {
    repeats = access != Access::kEach && access == before.access && view.dims == before.view.dims &&
              view.image_stride == before.view.image_stride;
    for (int d = 0; repeats && d < view.dims; ++d) {
      repeats = view.sizes[d] == before.view.sizes[d] && view.strides[d] == before.view.strides[d];
    }
  }

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

// Elements e to e + 3 of an image, e a multiple of 4, of each source to `to`, `step` apart: places
// in shared memory, because the one loop over elements that lie anywhere stays rolled.
template <class T, int kSources>
__device__ void load_quads(const QuadSource (&sources)[kSources], int64_t image, int64_t e,
                           int64_t elements, T* to, int step) {
  int64_t at = 0;
  RC_ROLL
  for (int s = 0; s < kSources; ++s, to += 4 * step) {
    const QuadSource& source = sources[s];
    const bool each = source.access == Access::kEach, run = source.access == Access::kRun;
    const int some = elements - e < 4 ? static_cast<int>(elements - e) : 4;
    T value = static_cast<T>(source.absent);
    RC_ROLL
    for (int i = 0; i < (each ? some : source.access != Access::kAbsent); ++i) {
      if (!source.repeats) at = source.offset(image, e + i);
      if (run) {
        load_run(source.view, at, to, step);
      } else {
        value = load_as<T>(source.view.data, source.view.dtype, at);
        if (each) to[i * step] = value;
      }
    }
    if (each || run) continue;
    RC_UNROLL
    for (int i = 0; i < 4; ++i) to[i * step] = value;
  }
}

}  // namespace robustcore
