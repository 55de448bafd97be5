// Batch normalisation by the batch's own statistics, with its first two derivatives. The forward
// pass is of the CPU only.
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
// follows from the shape and the layout alone: units of work, runs inside a unit, and accumulators
// inside a run, which starts them from 0.
#pragma once

#include <cmath>

#include "common/rows.h"
#include "common/variants.h"

namespace robustcore::density {

// kMean comes before kNormalize, which sums about that mean and so corrects it.
enum class BatchNormPass { kMean, kNormalize, kBackward, kDoubleBackward };

constexpr int sums_of(BatchNormPass pass) {
  return pass == BatchNormPass::kMean ? 1 : pass == BatchNormPass::kDoubleBackward ? 3 : 2;
}
constexpr int factors_of(BatchNormPass pass) {
  return pass == BatchNormPass::kNormalize ? 2 : pass == BatchNormPass::kBackward ? 3 : 7;
}

// All tensors lie as x does, without gaps: [images, channels, plane], or, with the channels last,
// [images, channels] and plane = 1. Everything but the sums is of one dtype.
struct BatchNormArgs {
  static constexpr int kMostSums = 3, kMostFactors = 7;  // of a pass
  static constexpr int64_t kUnit = 32768;                // elements of a unit of work, about
  static constexpr int64_t kSmallPlane = 64;
  // Runs: images of small planes; rows of channels last, which take turns in accumulators.
  static constexpr int64_t kImagesRun = 128, kRowRun = 256;
  static constexpr int kRowWays = 4;

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
  void* factors;  // [kMostFactors, channels]; or null: they need not be kept

  RC_HOST_DEVICE int64_t count() const {  // of a channel
    return images * plane;
  }
  RC_HOST_DEVICE int64_t images_per_unit() const {
    const int64_t of_image = channels_last ? channels : plane;
    const int64_t fitting = kUnit / of_image, least = channels_last ? 64 : 1;
    return fitting < least ? least : fitting;
  }
  RC_HOST_DEVICE int64_t chunks() const {
    return ceil_div(images, images_per_unit());
  }
  RC_HOST_DEVICE int64_t units() const {
    return channels_last ? chunks() : channels * chunks();
  }
  RC_HOST_DEVICE bool small_planes() const {  // a unit is then a channel
    return !channels_last && plane <= kSmallPlane && chunks() == 1;
  }
};

inline namespace RC_ISA {

// Calls body(pass, T{}) with the pass as a constant and the type of the arithmetic.
template <class Body>
RC_HOST_DEVICE void for_pass(const BatchNormArgs& args, const Body& body) {
  using Pass = BatchNormPass;
  const auto call = [&](auto pass) {
    dispatch_arithmetic(args.dtype, [&](auto tag) { body(pass, tag); });
  };
  switch (args.pass) {
    case Pass::kMean:
      return call(std::integral_constant<Pass, Pass::kMean>{});
    case Pass::kNormalize:
      return call(std::integral_constant<Pass, Pass::kNormalize>{});
    case Pass::kBackward:
      return call(std::integral_constant<Pass, Pass::kBackward>{});
    case Pass::kDoubleBackward:
      return call(std::integral_constant<Pass, Pass::kDoubleBackward>{});
  }
}

// Adds to accumulators sum(0), sum(1), ... what c, the gradient and v of some elements come to.
template <class L, BatchNormPass kPass, class Sum>
RC_HOST_DEVICE void batch_norm_add(typename L::Float c, typename L::Float grad, typename L::Float v,
                                   const Sum& sum) {
  if constexpr (kPass == BatchNormPass::kMean) {
    sum(0) = sum(0) + c;
  } else if constexpr (kPass == BatchNormPass::kNormalize) {
    sum(0) = sum(0) + c;
    sum(1) = L::fma(c, c, sum(1));
  } else {
    const bool twice = kPass == BatchNormPass::kDoubleBackward;
    const typename L::Float of = twice ? v : grad;
    if constexpr (twice) sum(2) = L::fma(of, grad, sum(2));
    sum(0) = sum(0) + of;
    sum(1) = L::fma(of, c, sum(1));
  }
}

// What the sweeps write, by the channel's factors f.
template <class L, class Float = typename L::Float>
RC_HOST_DEVICE Float batch_norm_d_x(Float c, Float grad, const Float* f) {
  return L::fma(f[0], grad, L::fma(f[1], c, f[2]));
}
template <class L, class Float = typename L::Float>
RC_HOST_DEVICE Float batch_norm_second_d_x(Float c, Float grad, Float v, const Float* f) {
  return L::fma(f[3], v, L::fma(f[4], grad, L::fma(f[5], c, f[6])));
}

// The sums of a channel over its chunks, counted by the caller: a GPU divides slowly.
template <int kCount>
RC_HOST_DEVICE void batch_norm_total(const BatchNormArgs& args, int64_t chunks, int64_t c,
                                     double (&sums)[kCount]) {
  constexpr int kMost = BatchNormArgs::kMostSums;
  const int64_t step = args.channels_last ? args.channels : 1;
  const double* from = args.sums + (args.channels_last ? c : c * chunks * kMost);
  for (double& sum : sums) sum = 0;
  RC_ROLL
  for (int64_t k = 0; k < chunks; ++k, from += kMost * step) {
    RC_UNROLL
    for (int q = 0; q < kCount; ++q) sums[q] += from[q * step];
  }
}

// What a channel's sums come to: gradients of its parameters, kept if it is asked for, and
// factors, given to set(i, factor).
template <class T, BatchNormPass kPass, class Set>
RC_HOST_DEVICE void batch_norm_finish(const BatchNormArgs& args, int64_t chunks, int64_t c,
                                      bool keep, const Set& set) {
  const auto at = [c](const void* p) { return static_cast<double>(static_cast<const T*>(p)[c]); };
  const auto put = [c, keep](void* p, double value) {
    if (keep) static_cast<T*>(p)[c] = static_cast<T>(value);
  };
  const double count = static_cast<double>(args.count());
  double m[sums_of(kPass)];
  batch_norm_total(args, chunks, c, m);
  RC_UNROLL
  for (double& sum : m) sum /= count;
  const double inverse = at(args.inverse), k = (args.weight ? at(args.weight) : 1) * inverse;
  set(0, k);
  if constexpr (kPass == BatchNormPass::kBackward) {
    put(args.d_bias, m[0] * count);
    put(args.d_weight, inverse * m[1] * count);
    set(1, -k * inverse * inverse * m[1]);
    set(2, -k * m[0]);
  } else {
    const double g_1 = at(args.d_bias) / count, g_h = at(args.d_weight) / count;
    const double v_1 = m[0], v_h = inverse * m[1];
    const double q = m[2] - v_1 * g_1 - v_h * g_h;
    put(args.second_d_weight, count * inverse * q);
    const double scale = -inverse * k;
    set(1, scale * v_h);                            // d_grad of c
    set(2, -k * v_1);                               // and 1
    set(3, scale * g_h);                            // d_x of v
    set(4, scale * v_h);                            // grad
    set(5, scale * inverse * (q - 2 * v_h * g_h));  // c
    set(6, -scale * (g_h * v_1 + v_h * g_1));       // and 1
  }
}

}  // namespace RC_ISA

// Of units [begin, end): the sums of a pass, and its sweep.
RC_VARIANTS(batch_norm_sums, const BatchNormArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(batch_norm_write, const BatchNormArgs& args, int64_t begin, int64_t end);

// The two backward passes in float32. `factors` is null, or room for many chunks' sums to be
// finished in a launch of their own.
void batch_norm_cuda(const BatchNormArgs& args, void* stream);

}  // namespace robustcore::density
