// Density: log-sum-exp over classes and norms over pixels, with their derivatives: the arguments of
// the kernels and the arithmetic that both devices run.
//
// Sums have one order everywhere, so that bits do not depend on the device, the instruction set or
// the threads: a row is cut in segments of kSegment elements; in a segment, element k is added to
// accumulator k % kSums; the accumulators are added as a binary tree (k and k + 16 first), and the
// segments in order.
#pragma once

#include "common/math.h"
#include "common/strided.h"

namespace robustcore::density {

constexpr int kSums = 32;
constexpr int64_t kSegment = 1024;

// One value a row, in the arithmetic type of the matrix: float64 if that is, else float32.
struct PerRow {
  const void* data;
  int64_t stride;
};

// Rows of a matrix that may be a chunk of columns of a wider one.
struct Logits {
  int64_t rows, classes;
  StridedView z;           // [rows, classes]
  const void* bias;        // [classes], arithmetic type; null: 0
  const int64_t* targets;  // [rows]; null: none
  int64_t first_class;     // of column 0, in the classes that targets count
};

// lse[n] = log sum_k exp(z[n, k] + bias[k]).
struct LseArgs {
  Logits logits;
  void *max, *sum;      // [rows]: state carried from chunk to chunk, or null
  bool first;           // the state is not read
  void* lse;            // [rows]
  void* target_logits;  // [rows]: z + bias of the target where the chunk has it; with targets
};

// weights[n, k] = grad[n] * p[n, k] + [k is the target] * grad_target[n], p = exp(z + bias - lse).
struct LseGradArgs {
  Logits logits;
  PerRow grad, lse, grad_target;
  void* weights;  // [rows, classes], may be z itself
  DType dtype;    // of weights
};

// With a cotangent v of the above: dot[n] = <p, v + v_bias> and
// curvature[n, k] = grad[n] * p[n, k] * (v[n, k] + v_bias[k] - dot[n]).
struct LseHessArgs {
  Logits logits;
  PerRow grad, lse, grad_target;
  StridedView v;
  const void* v_bias;  // [classes], arithmetic type; null: 0
  bool reduce;         // dot is added to by this matrix; else it is only read
  void* dot;           // [rows]
  void* curvature;     // [rows, classes], may be v itself; null: only dot is wanted
  void* weights;       // as in LseGradArgs, may be z itself; null: not wanted
  DType dtype;         // of curvature and weights
};

// norm[n] = (sum_k |g[n, k]|^p)^(1/p), scaled so that nothing overflows or vanishes; p = infinity
// is the maximum.
struct NormArgs {
  int64_t rows, elements;
  StridedView g;
  double p;
  void* norm;  // [rows]
};

// dual[n, k] = grad[n] * sign(g) * (|g| / norm)^(p - 1), 0 where norm is; at p = infinity, sign(g)
// shared evenly by the elements of magnitude norm.
struct NormGradArgs {
  int64_t rows, elements;
  StridedView g;
  double p;
  PerRow grad, norm;
  void* dual;  // [rows, elements]
  DType dtype;
};

// With a cotangent v of the dual at grad = 1: dot[n] = <dual, v> and curvature[n, k] = grad[n]
// times the derivative of dot[n] in g[n, k], (p - 1) / norm (|g / norm|^(p - 2) v - dual dot), 0
// where the norm is.
struct NormHessArgs {
  int64_t rows, elements;
  StridedView g, v;
  double p;
  PerRow grad, norm;
  void* dot;        // [rows]
  void* curvature;  // [rows, elements]
  DType dtype;      // of curvature
};

inline namespace RC_ISA {

template <class T>
RC_HOST_DEVICE T at_row(const PerRow& values, int64_t row) {
  return static_cast<const T*>(values.data)[row * values.stride];
}

// A running sum_k f(x_k / scale) with the maximum that sets its scale.
template <class T>
struct Scaled {
  T max, sum;
};

template <class T>
RC_HOST_DEVICE bool finite(T v) {
  return v - v == T(0);
}

// What is subtracted before exp: the maximum, or 0 where it is infinite (all classes impossible, or
// one certain) or NaN, so that the sum comes out 0, infinite or NaN.
template <class T>
RC_HOST_DEVICE T shift_of(T max) {
  return finite(max) ? max : T(0);
}

// What magnitudes are divided by.
template <class T>
RC_HOST_DEVICE T scale_of(T max) {
  return max > T(0) && finite(max) ? max : T(1);
}

// Two runs of exponentials as one.
template <class L>
RC_HOST_DEVICE Scaled<typename L::Real> add_exp(Scaled<typename L::Real> a,
                                                Scaled<typename L::Real> b) {
  const auto max = L::max(a.max, b.max), shift = shift_of(max);
  return {max, L::fma(a.sum, exp<L>(a.max - shift), b.sum * exp<L>(b.max - shift))};
}

template <class L>
RC_HOST_DEVICE typename L::Real lse_of(Scaled<typename L::Real> total) {
  using T = typename L::Real;
  const T log_sum = total.sum > T(0) && finite(total.sum) ? log<L>(total.sum)
                    : total.sum == T(0)                   ? T(-INFINITY)
                                                          : total.sum;
  return shift_of(total.max) + log_sum;
}

// What is subtracted to get a class's probability. A row of -infinity has none: its p are 0.
template <class T>
RC_HOST_DEVICE T probability_shift(T lse) {
  return lse == T(-INFINITY) ? T(0) : lse;
}

enum class Norm { kOne, kTwo, kInf, kGeneral };

// Calls body with an integral constant of the kind of norm.
template <class Body>
void with_norm(double p, const Body& body) {
  if (p == 1) {
    body(std::integral_constant<Norm, Norm::kOne>{});
  } else if (p == 2) {
    body(std::integral_constant<Norm, Norm::kTwo>{});
  } else if (p == INFINITY) {
    body(std::integral_constant<Norm, Norm::kInf>{});
  } else {
    body(std::integral_constant<Norm, Norm::kGeneral>{});
  }
}

// u^p of a magnitude divided by the scale; at infinity only NaN matters.
template <class L, Norm kNorm>
RC_HOST_DEVICE typename L::Float norm_term(typename L::Float u, typename L::Real p) {
  if constexpr (kNorm == Norm::kOne) {
    return u;
  } else if constexpr (kNorm == Norm::kTwo) {
    return u * u;
  } else if constexpr (kNorm == Norm::kInf) {
    return L::min(L::splat(typename L::Real(1)), u);
  } else {
    return pow_unit<L>(u, p) * positive<L>(u);
  }
}

// Two runs of powers as one; L is of one lane.
template <class L, Norm kNorm>
RC_HOST_DEVICE Scaled<typename L::Real> add_power(Scaled<typename L::Real> a,
                                                  Scaled<typename L::Real> b, typename L::Real p) {
  const auto max = L::max(a.max, b.max), scale = scale_of(max);
  if constexpr (kNorm == Norm::kInf) return {max, a.sum + b.sum};
  return {max, L::fma(a.sum, norm_term<L, kNorm>(a.max / scale, p),
                      b.sum * norm_term<L, kNorm>(b.max / scale, p))};
}

RC_HOST_DEVICE float square_root(float v) {
  return ::sqrtf(v);
}
RC_HOST_DEVICE double square_root(double v) {
  return ::sqrt(v);
}

template <class L, Norm kNorm>
RC_HOST_DEVICE typename L::Real norm_of(Scaled<typename L::Real> total, typename L::Real p) {
  using T = typename L::Real;
  if (total.sum != total.sum) return total.sum;
  if (kNorm == Norm::kInf || !(total.max > T(0)) || !finite(total.max)) return total.max;
  if constexpr (kNorm == Norm::kOne) return total.max * total.sum;
  if constexpr (kNorm == Norm::kTwo) return total.max * square_root(total.sum);
  return total.max * exp<L>(log<L>(total.sum) / p);
}

// sign(g) (|g| / norm)^(p - 1); at infinity sign(g) where |g| is the norm. `scale` is the norm, or
// 1 where that is 0.
template <class L, Norm kNorm>
RC_HOST_DEVICE typename L::Float dual(typename L::Float g, typename L::Float scale,
                                      typename L::Real p) {
  using T = typename L::Real;
  const auto magnitude = abs<L>(g);
  if constexpr (kNorm == Norm::kOne) {
    return copysign<L>(positive<L>(magnitude), g);
  } else if constexpr (kNorm == Norm::kTwo) {
    return g / scale;
  } else if constexpr (kNorm == Norm::kInf) {
    return copysign<L>(L::splat(T(1)) - positive<L>(scale - magnitude), g);
  } else {
    const auto u = magnitude / scale;
    return copysign<L>(pow_unit<L>(u, p - T(1)) * positive<L>(u), g);
  }
}

// The norm as a divisor; NaN stays.
template <class T>
RC_HOST_DEVICE T divisor(T norm) {
  return norm == T(0) ? T(1) : norm;
}

// What is common to a row's curvature.
template <class T>
RC_HOST_DEVICE T norm_slope(T grad, T norm, T p) {
  return norm == T(0) ? T(0) : grad * (p - T(1)) / norm;
}

// slope (|g / norm|^(p - 2) v - dual dot); 0 at 1 and infinity, whose duals are constant almost
// everywhere. An element of 0 has no curvature of its own.
template <class L, Norm kNorm>
RC_HOST_DEVICE typename L::Float norm_curvature(typename L::Float g, typename L::Float v,
                                                typename L::Float scale, typename L::Float slope,
                                                typename L::Float dot, typename L::Real p) {
  using T = typename L::Real;
  if constexpr (kNorm == Norm::kOne || kNorm == Norm::kInf) {
    return L::splat(T(0));
  } else {
    if constexpr (kNorm == Norm::kGeneral) {
      const auto u = abs<L>(g) / scale;
      return slope *
             (pow_unit<L>(u, p - T(2)) * positive<L>(u) * v - dual<L, kNorm>(g, scale, p) * dot);
    }
    return slope * (v - dual<L, kNorm>(g, scale, p) * dot);
  }
}

}  // namespace RC_ISA
}  // namespace robustcore::density
