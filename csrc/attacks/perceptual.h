// How far features are apart, pixel by pixel. A column is what a pixel has along the channels;
// columns are brought to length 1, u = f / (|f| + 1e-10), and compared. One of zeros, which has no
// direction, stays zeros and has no derivative.
//
// Sums over channels have one order everywhere: channel c is added to part c % kParts, and the
// parts as a binary tree (i and i + kParts / 2 first).
#pragma once

#include "common/dtype.h"
#include "common/variants.h"

namespace robustcore::attacks {

constexpr int kParts = 8;

// distance[b, p] = sum_c weights[c] (u - v)^2, u and v the unit columns of f and r; or, where that
// is null, what comes back to both of its cotangent.
struct PerceptualArgs {
  int64_t images, channels, pixels;
  const void *features, *reference;      // [images, channels, pixels]
  const void* weights;                   // [channels] in the arithmetic type; null: ones
  DType dtype;                           // of features, reference and their gradients
  void* distance;                        // [images, pixels] in the arithmetic type
  const void* upstream;                  // the same
  void *grad_features, *grad_reference;  // as features; null: not wanted
};

constexpr int kColumns = 64;  // of a unit: a block of pixels of an image
RC_VARIANTS(perceptual, const PerceptualArgs& args, int64_t begin, int64_t end);
void perceptual_cuda(const PerceptualArgs& args, void* stream);

inline namespace RC_ISA {

// What a column is multiplied by, and how that falls as it gets longer, over its length.
template <class T>
struct Inverse {
  T value, slope;

  static RC_HOST_DEVICE Inverse of(T square) {
    if (!(square > T(0))) return {T(0), T(0)};
    const T length = OneLane<T>::sqrt(square), value = T(1) / (length + T(1e-10));
    return {value, value / length};
  }
};

template <class T>
RC_HOST_DEVICE T weight_of(const PerceptualArgs& args, int64_t channel) {
  return args.weights ? static_cast<const T*>(args.weights)[channel] : T(1);
}

// The cotangent of a unit column's element, of the other column's with the other sign.
template <class T>
RC_HOST_DEVICE T pull(T weight, T upstream, T gap) {
  return T(2) * weight * upstream * gap;
}

// What comes back to an element f of the column: `along` is the column's product with its pulls.
template <class T>
RC_HOST_DEVICE T returned(T pull, T f, T along, Inverse<T> inverse) {
  return inverse.value * (pull - f * (inverse.slope * along));
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
