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

#include <math.h>

#include "common/strided.h"

namespace robustcore::density {

// kMean comes before kNormalize, which sums about that mean and so corrects it.
enum class BatchNormPass { kMean, kNormalize, kBackward, kDoubleBackward };

// All tensors lie as x does, without gaps: [images, channels, plane], or, with the channels last,
// [images, channels] and plane = 1. Vectors are [channels]; everything is of one dtype.
struct BatchNormArgs {
  static constexpr int kSums = 3, kFactors = 7;  // most of a pass
  static constexpr int64_t kUnit = 32768;        // elements of a unit of work, about

  BatchNormPass pass;
  int64_t images, channels, plane;
  bool channels_last;
  DType dtype;
  double eps, momentum;
  const void *x, *grad, *v;
  const void* more;                  // backward: added to d_x; or null
  const void *weight, *bias;         // or null: 1 and 0
  void *mean, *inverse;              // written by the forward passes
  void *running_mean, *running_var;  // or null
  void *out, *curvature;             // y, d_x, or d_grad; of the double backward, d_x
  void *d_weight, *d_bias;           // written by backward, read by double backward
  void* second_d_weight;             // of the double backward; or null
  double* sums;   // [units, kSums], or [units, kSums, channels] with channels last
  void* factors;  // [kFactors, channels]

  int64_t count() const {
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
};

inline namespace RC_ISA {

// In simd_batch_norm.cpp, of units [begin, end).
void batch_norm_sums(const BatchNormArgs& args, int64_t begin, int64_t end);
void batch_norm_write(const BatchNormArgs& args, int64_t begin, int64_t end);

// What a channel's sums come to: statistics, gradients of its parameters, factors of the sweep.
template <class T>
void batch_norm_finish(const BatchNormArgs& a, int64_t c) {
  const auto at = [c](const void* p, double otherwise) {
    return p ? static_cast<double>(static_cast<const T*>(p)[c]) : otherwise;
  };
  const auto set = [c](void* p, double value) {
    if (p) static_cast<T*>(p)[c] = static_cast<T>(value);
  };
  const auto factors = [&](auto... values) {
    T* f = static_cast<T*>(a.factors) + c;
    ((*f = static_cast<T>(values), f += a.channels), ...);
  };
  const double count = static_cast<double>(a.count());
  double m[BatchNormArgs::kSums] = {};  // means of what was summed
  for (int64_t k = 0; k < a.chunks(); ++k) {
    for (int q = 0; q < BatchNormArgs::kSums; ++q) {
      m[q] += a.channels_last ? a.sums[(k * BatchNormArgs::kSums + q) * a.channels + c]
                              : a.sums[(c * a.chunks() + k) * BatchNormArgs::kSums + q];
    }
  }
  for (double& sum : m) sum /= count;

  if (a.pass == BatchNormPass::kMean) return set(a.mean, m[0]);
  if (a.pass == BatchNormPass::kNormalize) {
    const double mean = at(a.mean, 0) + m[0], var = m[1] - m[0] * m[0];
    const double inverse = 1 / ::sqrt((var > 0 ? var : var < 0 ? 0 : var) + a.eps);
    const double k = at(a.weight, 1) * inverse;
    set(a.mean, mean);
    set(a.inverse, inverse);
    factors(k, at(a.bias, 0) - k * (mean - at(a.mean, 0)));
    const auto run = [&](void* running, double value) {
      set(running, (1 - a.momentum) * at(running, 0) + a.momentum * value);
    };
    run(a.running_mean, mean);
    run(a.running_var, var * count / (count - 1));
    return;
  }
  const double inverse = at(a.inverse, 0), k = at(a.weight, 1) * inverse;
  if (a.pass == BatchNormPass::kBackward) {
    set(a.d_bias, m[0] * count);
    set(a.d_weight, inverse * m[1] * count);
    factors(k, -k * inverse * inverse * m[1], -k * m[0]);
    return;
  }
  const double g_1 = at(a.d_bias, 0) / count, g_h = at(a.d_weight, 0) / count;
  const double v_1 = m[0], v_h = inverse * m[1];
  const double q = m[2] - v_1 * g_1 - v_h * g_h;
  set(a.second_d_weight, count * inverse * q);
  const double scale = -inverse * k;
  factors(k, scale * v_h, -k * v_1,                                         // d_grad of v, c and 1
          scale * g_h, scale * v_h, scale * inverse * (q - 2 * v_h * g_h),  // d_x of v, grad, c
          -scale * (g_h * v_1 + v_h * g_1));                                // and 1
}

}  // namespace RC_ISA
}  // namespace robustcore::density
