// Images turned by angles and then moved, bilinear, zeros outside; and the transposed map.
//
// Pixel (i, j) of a pose is read at the source (y, x) to which the pose backwards takes it. Of a
// quarter turn and of whole pixels its fractions are 0, and the image is exact. In the transposed
// map a pixel receives what reads it in the order of (pose, i, j): the CPU scatters, a GPU, which
// would need atomics, gathers from the few pixels around where the pose takes it.
#pragma once

#include "common/dtype.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::attacks {

struct WarpArgs {
  int64_t images, poses, channels, rows, columns;
  const void* in;        // [images, channels, rows, columns], transposed as out
  const void* turns;     // [images or 1, poses, 4]: cosine, sine, pixels down, pixels right
  int64_t turns_stride;  // of an image, 0: the same poses for all
  void* out;             // [images, poses, channels, rows, columns], transposed as in
  DType dtype;           // of in and out; turns are of its arithmetic type
  void* corners;         // of the CPU: [some images, channels, padded(), 2], see below
  int64_t first;         // of these images

  int64_t pixels() const {
    return rows * columns;
  }
  // With zeros around it a plane has all that a tap reads.
  int64_t padded_columns() const {
    return columns + 4;
  }
  int64_t padded() const {
    return (rows + 4) * padded_columns();
  }
};

// The CPU first lays planes out in the arithmetic type, each pixel with the one below it: the four
// that a tap reads then follow each other, and no pixel is an edge.
RC_VARIANTS(warp_corners, const WarpArgs& args, int64_t begin, int64_t end);  // padded rows
RC_VARIANTS(warp, const WarpArgs& args, int64_t begin, int64_t end);  // rows of poses of images
RC_VARIANTS(warp_transposed, const WarpArgs& args, int64_t begin, int64_t end);  // planes
void warp_cuda(const WarpArgs& args, void* stream);
void warp_transposed_cuda(const WarpArgs& args, void* stream);

inline namespace RC_ISA {

// A source's pixel and fraction on one axis, the pixel in [-2, size]. What is outside, NaN too, is
// so by a pixel at least.
template <class T>
struct Tap {
  int first;
  T fraction;

  RC_HOST_DEVICE Tap(T source, int size) {
    source = source > T(-2) ? source : T(-2);
    source = source < static_cast<T>(size) ? source : static_cast<T>(size);
    const int cut = static_cast<int>(source);
    first = cut - (static_cast<T>(cut) > source ? 1 : 0);
    fraction = source - static_cast<T>(first);
  }
  RC_HOST_DEVICE bool reads(int at) const {
    return at == first || at == first + 1;
  }
  // At a pixel that it reads.
  RC_HOST_DEVICE T weight(int at) const {
    return at == first ? T(1) - fraction : fraction;
  }
};

RC_HOST_DEVICE bool is_inside(int at, int size) {
  return at >= 0 && at < size;
}

// One pose of one image.
template <class T>
class Pose {
 public:
  RC_HOST_DEVICE Pose(const WarpArgs& args, int64_t image, int64_t pose) {
    const T* turn = static_cast<const T*>(args.turns) + image * args.turns_stride + pose * 4;
    cosine_ = turn[0], sine_ = turn[1], down_ = turn[2], right_ = turn[3];
    middle_y_ = static_cast<T>(args.rows - 1) / 2, middle_x_ = static_cast<T>(args.columns - 1) / 2;
  }

  // Where pixel (i, j) is read.
  RC_HOST_DEVICE T source_y(int i, int j) const {
    return fma_(sine_, across(j), fma_(cosine_, along(i), middle_y_));
  }
  RC_HOST_DEVICE T source_x(int i, int j) const {
    return fma_(cosine_, across(j), fma_(-sine_, along(i), middle_x_));
  }

  // Where the pixel (y, x) of the image comes to lie.
  RC_HOST_DEVICE T target_y(int y, int x) const {
    const T u = static_cast<T>(y) - middle_y_, v = static_cast<T>(x) - middle_x_;
    return fma_(cosine_, u, -sine_ * v) + middle_y_ + down_;
  }
  RC_HOST_DEVICE T target_x(int y, int x) const {
    const T u = static_cast<T>(y) - middle_y_, v = static_cast<T>(x) - middle_x_;
    return fma_(sine_, u, cosine_ * v) + middle_x_ + right_;
  }

  // How far from there, in both directions, pixels may read it; with what rounding may add.
  RC_HOST_DEVICE T reach() const {
    return (cosine_ < 0 ? -cosine_ : cosine_) + (sine_ < 0 ? -sine_ : sine_) + T(0.01);
  }

 private:
  static RC_HOST_DEVICE T fma_(T a, T b, T c) {
    return OneLane<T>::fma(a, b, c);
  }
  RC_HOST_DEVICE T along(int i) const {
    return (static_cast<T>(i) - middle_y_) - down_;
  }
  RC_HOST_DEVICE T across(int j) const {
    return (static_cast<T>(j) - middle_x_) - right_;
  }

  T cosine_, sine_, down_, right_, middle_y_, middle_x_;
};

// Between a and b; a itself where the fraction is 0.
template <class T>
RC_HOST_DEVICE T between(T fraction, T a, T b) {
  return OneLane<T>::fma(fraction, b - a, a);
}

// The value at a source of the plane whose pixels `read` gives.
template <class T, class Read>
RC_HOST_DEVICE T value_at(const Read& read, const Tap<T>& down, const Tap<T>& right, int rows,
                          int columns) {
  const auto pixel = [&](int y, int x) {
    if (!is_inside(y, rows) || !is_inside(x, columns)) return T(0);
    return read(static_cast<int64_t>(y) * columns + x);
  };
  const int y = down.first, x = right.first;
  const T upper = between(right.fraction, pixel(y, x), pixel(y, x + 1));
  const T lower = between(right.fraction, pixel(y + 1, x), pixel(y + 1, x + 1));
  return between(down.fraction, upper, lower);
}

// The pixels of an axis that may read what comes to lie at `target`.
struct Range {
  int first, last;
};
template <class T>
RC_HOST_DEVICE Range range_around(T target, T reach, int size) {
  const T from = target - reach, to = target + reach, end = static_cast<T>(size);
  // NaN and what is far away give none.
  const int first = from < end ? (from > 0 ? static_cast<int>(from) : 0) : size;
  const int last = to >= 0 ? (to < end ? static_cast<int>(to) : size - 1) : -1;
  return {first, last};
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
