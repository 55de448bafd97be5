// Batch normalisation by the batch's own statistics, with its first two derivatives. CPU only.
//
// Each pass is sums over a channel, a few numbers a channel made of them, and one sweep that is
// linear in the tensors. With c = x - mean, i = 1 / sqrt(var + eps), k = weight i and m(.) the mean
// over the M values of a channel:
//   forward          y = k c + bias
//   backward         B(g) = k (g - m(g) - i^2 m(g c) c)
//                    d_weight = i M m(g c), d_bias = M m(g)
//   double backward  of <v, B(g)>: by g it is B(v), by weight M i q, and by x
//                    -i (m(g h) B(v) + m(v h) B(g) + k q h), where h = i c and
//                    q = m(v g) - m(v) m(g) - m(v h) m(g h).
//
// Sums are taken in float32 over a bounded number of elements and go on in float64. Their order
// follows from the shape and the layout alone: units of work, and accumulators inside one.
#pragma once

#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::density {

// kMean comes before kNormalize, which sums about that mean and so corrects it.
enum class BatchNormPass { kMean, kNormalize, kBackward, kDoubleBackward };

// All tensors lie as x does, without gaps: [images, channels, plane], or, with the channels last,
// [images, channels] and plane = 1. Everything but the sums is of one dtype.
struct BatchNormArgs {
  static constexpr int kMostSums = 3, kMostFactors = 7;  // of a pass
  static constexpr int64_t kUnit = 32768;                // elements of a unit of work, about
  static constexpr int64_t kSmallPlane = 64;

  BatchNormPass pass;
  int64_t images, channels, plane;
  bool channels_last;
  DType dtype;
  double eps, momentum;
  // [images, channels, plane]
  const void *x, *grad, *v;
  const void* more;  // backward: added to d_x; or null
  void *y, *d_x, *d_grad;
  // [channels]
  const void *weight, *bias;         // or null: 1 and 0
  void *mean, *inverse;              // written by the forward passes, inverse = 1 / sqrt(var + eps)
  void *running_mean, *running_var;  // or null
  void *d_weight, *d_bias;           // written by backward, read by double backward
  void* second_d_weight;             // what the double backward gives for weight
  // Scratch
  double* sums;   // [units, kMostSums], or [units, kMostSums, channels] with channels last
  void* factors;  // [kMostFactors, channels]

  int64_t count() const {  // of a channel
    return images * plane;
  }
  int64_t images_per_unit() const {
    const int64_t of_image = channels_last ? channels : plane;
    const int64_t fitting = kUnit / of_image, least = channels_last ? 64 : 1;
    return fitting < least ? least : fitting;
  }
  int64_t chunks() const {
    return ceil_div(images, images_per_unit());
  }
  int64_t units() const {
    return channels_last ? chunks() : channels * chunks();
  }
  bool small_planes() const {  // a unit is then a channel
    return !channels_last && plane <= kSmallPlane && chunks() == 1;
  }
};

// Of units [begin, end): the sums of a pass, and its sweep.
RC_VARIANTS(batch_norm_sums, const BatchNormArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(batch_norm_write, const BatchNormArgs& args, int64_t begin, int64_t end);

}  // namespace robustcore::density
