// What the losses of certified training have in common: of the logits of m noisy copies of an
// image, the logarithm of their mean softmax, and the mean of their log-softmax.
//
// With l[i, k] = log softmax(scale z[i])[k] of copy i, kept as (scale z - max[i]) - log_sum[i] so
// that a probability near 1 keeps the digits of its logarithm:
//   log_mean[k] = log(1/m sum_i exp l[i, k]),   mean_log[k] = 1/m sum_i l[i, k].
// Where a mean is too small for T, its logarithm comes from those of the copies: all stays finite
// however sure they are.
#pragma once

#include <limits>

#include "common/math.h"
#include "common/rows.h"
#include "common/variants.h"

namespace robustcore::smoothing {

// T is the arithmetic type of the logits; what is no view is contiguous and of it.
struct MeanSoftmaxArgs {
  int64_t images, copies, classes;
  StridedView logits;  // [images, copies, classes]: a copy is what the view calls a sample
  double scale;        // above 0
  void* rows;          // [images, 3, copies]: max, log_sum, 1 / sum; backward reads it
  void* log_mean;      // [images, classes]; backward reads it
  void* mean_log;      // [images, classes]

  int64_t elements() const {
    return images * copies * classes;
  }
};

// With p = exp l, the weight of a copy w[i, k] = exp(l[i, k] - log_mean[k]) / m and the gradient
// G[i, k] = grad_log_mean[k] w[i, k] + grad_mean_log[k] / m of l:
//   grad[i, k] = scale (G[i, k] - p[i, k] sum_k G[i, k]).
struct MeanSoftmaxBackwardArgs {
  MeanSoftmaxArgs forward;
  const void *grad_log_mean, *grad_mean_log;  // [images, classes]
  void* grad;                                 // [images, copies, classes]
};

// With a cotangent v of grad and U = scale (v - sum_k p v): second_log_mean[k] = sum_i w U,
// second_mean_log[k] = 1/m sum_i U and, with H = grad_log_mean w (U - second_log_mean),
//   second[i, k] = scale (H - p sum_k H - p U sum_k G).
struct MeanSoftmaxDoubleBackwardArgs {
  MeanSoftmaxBackwardArgs backward;         // but for grad, which is not written
  const void* v;                            // [images, copies, classes]
  void* sums;                               // [images, 2, copies]: sum_k p v and sum_k G
  void *second_log_mean, *second_mean_log;  // [images, classes]
  void* second;                             // [images, copies, classes]
};

// A unit is an image. Scratch: of a thread, copies * classes values and classes values of T.
RC_VARIANTS(mean_softmax, const MeanSoftmaxArgs& args, float* scratch, int64_t begin, int64_t end);
RC_VARIANTS(mean_softmax_backward, const MeanSoftmaxBackwardArgs& args, float* scratch,
            int64_t begin, int64_t end);
RC_VARIANTS(mean_softmax_double_backward, const MeanSoftmaxDoubleBackwardArgs& args, int64_t begin,
            int64_t end);
void mean_softmax_cuda(const MeanSoftmaxArgs& args, void* stream);
void mean_softmax_backward_cuda(const MeanSoftmaxBackwardArgs& args, void* stream);
void mean_softmax_double_backward_cuda(const MeanSoftmaxDoubleBackwardArgs& args, void* stream);

inline namespace RC_ISA {

// The arithmetic of one element, for lanes of any width; max, log_sum and so on are of its copy.
template <class L>
struct MeanSoftmax {
  using Float = typename L::Float;
  using T = typename L::Real;
  // Of a mean: below it, probabilities may have left the range of T, and logarithms have to do.
  static constexpr T kTiny = T(0x1p-100), kLogTiny = T(-69.3147180559945);
  T scale, share;  // share = 1 / m

  RC_HOST_DEVICE explicit MeanSoftmax(const MeanSoftmaxArgs& args)
      : scale(static_cast<T>(args.scale)), share(T(1) / static_cast<T>(args.copies)) {}

  RC_HOST_DEVICE Float shifted(Float z, T max) const {
    return L::splat(scale) * z - L::splat(max);
  }
  RC_HOST_DEVICE Float log_p(Float z, T max, T log_sum) const {
    return shifted(z, max) - L::splat(log_sum);
  }
  // NaN stays NaN.
  RC_HOST_DEVICE static Float log_of(Float sum) {
    return log<L>(L::max(L::splat(kTiny), sum)) + (sum - sum);
  }
  // What is subtracted before exp: of a class that no copy can have, a finite number.
  RC_HOST_DEVICE static Float shift_of(Float max) {
    return L::max(L::splat(std::numeric_limits<T>::lowest()), max);
  }
  RC_HOST_DEVICE Float weight(Float l, Float log_mean) const {
    return L::splat(share) * exp<L>(l - log_mean);
  }
  // w / p, the same for all copies; of no use where the mean is tiny.
  RC_HOST_DEVICE Float weight_of_p(Float log_mean) const {
    return L::splat(share) * exp<L>(L::splat(T(0)) - log_mean);
  }
  RC_HOST_DEVICE Float gradient(Float w, Float grad_log_mean, Float grad_mean_log) const {
    return L::fma(grad_log_mean, w, L::splat(share) * grad_mean_log);
  }
  RC_HOST_DEVICE Float centred(Float v, T mean) const {
    return L::splat(scale) * (v - L::splat(mean));
  }
  RC_HOST_DEVICE Float final_gradient(Float g, Float p, T sum) const {
    return L::splat(scale) * (g - p * L::splat(sum));
  }
  RC_HOST_DEVICE Float final_second(Float h, Float p, Float u, T h_sum, T g_sum) const {
    return L::splat(scale) * (h - p * L::fma(L::splat(g_sum), u, L::splat(h_sum)));
  }
};

// Lanes where a < b, as bits; and b's lanes where they are set, else a's.
template <class L>
RC_HOST_DEVICE uint32_t lanes_below(typename L::Float a, typename L::Float b) {
  if constexpr (L::kFloats == 1) {
    return a < b;
  } else {
    return L::less_mask(a, b);
  }
}
template <class L>
RC_HOST_DEVICE typename L::Float choose(uint32_t mask, typename L::Float a, typename L::Float b) {
  if constexpr (L::kFloats == 1) {
    return mask & 1 ? b : a;
  } else {
    return L::blend(mask, a, b);
  }
}

}  // namespace RC_ISA
}  // namespace robustcore::smoothing
