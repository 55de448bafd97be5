// Norms over pixels with their first two derivatives: the arguments of the kernels and the
// arithmetic both devices run.
#pragma once

#include "common/math.h"
#include "common/rows.h"
#include "common/variants.h"

namespace robustcore::density {

// norm[n] = (sum_k |grad[n, k]|^p)^(1/p), scaled so that nothing overflows or vanishes; p =
// infinity is the maximum.
struct GradNormArgs {
  int64_t rows, elements;
  StridedView grad;  // [rows, elements]
  double p;
  void* norm;  // [rows]
  RowPlan plan;
};

// dual[n, k] = upstream[n] sign(grad) (|grad| / norm)^(p - 1), 0 where norm is; at p = infinity,
// sign(grad) shared evenly by the elements of magnitude norm.
struct GradNormBackwardArgs {
  int64_t rows, elements;
  StridedView grad;  // [rows, elements]
  double p;
  PerRow upstream, norm;
  void* dual;  // [rows, elements] in the dtype of grad
  RowPlan plan;
};

// With a cotangent v of the dual at upstream = 1: dot[n] = <dual, v> and curvature[n, k] =
// upstream[n] times the derivative of dot[n] in grad[n, k],
// (p - 1) / norm (|grad / norm|^(p - 2) v - dual dot), 0 where the norm is.
struct GradNormDoubleBackwardArgs {
  int64_t rows, elements;
  StridedView grad, v;  // [rows, elements]
  double p;
  PerRow upstream, norm;
  void* dot;        // [rows]
  void* curvature;  // [rows, elements] in the dtype of grad
  RowPlan plan;
};

// A unit is a row: one thread sums it.
RC_VARIANTS(grad_norm, const GradNormArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(grad_norm_backward, const GradNormBackwardArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(grad_norm_double_backward, const GradNormDoubleBackwardArgs& args, int64_t begin,
            int64_t end);
void grad_norm_cuda(const GradNormArgs& args, void* stream);
void grad_norm_backward_cuda(const GradNormBackwardArgs& args, void* stream);
void grad_norm_double_backward_cuda(const GradNormDoubleBackwardArgs& args, void* stream);

enum class Norm { kOne, kTwo, kInf, kGeneral };

inline namespace RC_ISA {

// Calls body with the kind of norm as a constant.
template <class Body>
RC_HOST_DEVICE void for_norm(double p, const Body& body) {
  using enum Norm;
  if (p == 1) return body(std::integral_constant<Norm, kOne>{});
  if (p == 2) return body(std::integral_constant<Norm, kTwo>{});
  if (p == INFINITY) return body(std::integral_constant<Norm, kInf>{});
  body(std::integral_constant<Norm, kGeneral>{});
}

// What magnitudes are divided by.
template <class T>
RC_HOST_DEVICE T scale_of(T max) {
  return max > T(0) && finite(max) ? max : T(1);
}

// A norm, or a number of elements, to divide by; NaN stays.
template <class T>
RC_HOST_DEVICE T divisor(T v) {
  return v == T(0) ? T(1) : v;
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

// What a sum of powers divided by m counts in one of powers divided by max.
template <class L, Norm kNorm>
RC_HOST_DEVICE typename L::Real power_weight(typename L::Real m, typename L::Real max,
                                             typename L::Real p) {
  if constexpr (kNorm == Norm::kInf) return 1;
  return norm_term<L, kNorm>(m / scale_of(max), p);
}

// Two runs of powers as one.
template <class L, Norm kNorm>
RC_HOST_DEVICE Scaled<typename L::Real> add_power(Scaled<typename L::Real> a,
                                                  Scaled<typename L::Real> b, typename L::Real p) {
  const auto max = L::max(a.max, b.max);
  return {max, L::fma(a.sum, power_weight<L, kNorm>(a.max, max, p),
                      b.sum * power_weight<L, kNorm>(b.max, max, p))};
}

template <class L, Norm kNorm>
RC_HOST_DEVICE typename L::Real norm_of(Scaled<typename L::Real> total, typename L::Real p) {
  using T = typename L::Real;
  if (total.sum != total.sum) return total.sum;
  if (kNorm == Norm::kInf || !(total.max > T(0)) || !finite(total.max)) return total.max;
  if constexpr (kNorm == Norm::kOne) return total.max * total.sum;
  if constexpr (kNorm == Norm::kTwo) return total.max * L::sqrt(total.sum);
  return total.max * exp<L>(log<L>(total.sum) / p);
}

// sign(g) (|g| / norm)^(p - 1) of an element g; at infinity sign(g) where |g| is the norm. `scale`
// is the norm as a divisor.
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

// What is common to a row's curvature.
template <class T>
RC_HOST_DEVICE T norm_slope(T upstream, T norm, T p) {
  return norm == T(0) ? T(0) : upstream * (p - T(1)) / norm;
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
    auto curved = v;
    if constexpr (kNorm == Norm::kGeneral) {
      const auto u = abs<L>(g) / scale;
      curved = pow_unit<L>(u, p - T(2)) * positive<L>(u) * v;
    }
    return slope * (curved - dual<L, kNorm>(g, scale, p) * dot);
  }
}

}  // namespace RC_ISA
}  // namespace robustcore::density
