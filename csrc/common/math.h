// Elementary functions and uniform words to normals, by our own polynomials so that every device
// gives the same float32 bits; in float64 lanes exp and log are the platform's. The minimax
// coefficients were fitted in 40-digit arithmetic (Remez) and rounded to float32.
#pragma once

#include <type_traits>

#include "common/lanes.h"

namespace robustcore {
inline namespace RC_ISA {

RC_HOST_DEVICE float fused_multiply_add(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
RC_HOST_DEVICE double fused_multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}

template <class L, int N>
RC_HOST_DEVICE typename L::Float horner(typename L::Float x, const float (&c)[N]) {
  auto y = L::splat(c[N - 1]);
  RC_UNROLL
  for (int i = N - 2; i >= 0; --i) y = L::fma(y, x, L::splat(c[i]));
  return y;
}

// -2 ln(u) for u in (0, 1], relative error below 2^-23 before the last rounding.
template <class L>
RC_HOST_DEVICE typename L::Float neg_two_log(typename L::Float u) {
  using Float = typename L::Float;
  using Int = typename L::Int;
  // u = 2^k (1 + f) with 1 + f in [sqrt 1/2, sqrt 2), so that k = 0 and no cancellation near u = 1.
  const Int bits = L::template as<Int>(u);
  const Int above = bits - 0x3F3504F3;  // k in the exponent field, the rest below it
  const Int k = above >> 23;
  const Float f = L::template as<Float>(bits - (above & ~0x7FFFFF)) - L::splat(1.0f);
  constexpr float c[] = {
      -2.0f,        0.999999762f,  -0.666683733f, 0.500041485f, -0.399136662f,
      0.331247866f, -0.299045324f, 0.287336886f,  -0.174447134f};  // -2 ln(1+f) / f, error 2.6e-8
  return L::fma(L::from_int(k), L::splat(-1.38629436f), f * horner<L>(f, c));
}

// ln(u) for u in [2^-126, infinity), error below 2 ulp.
template <class L>
RC_HOST_DEVICE typename L::Float log(typename L::Float u) {
  if constexpr (std::is_same_v<typename L::Real, double>) {
    return ::log(u);
  } else {
    return L::splat(-0.5f) * neg_two_log<L>(u);
  }
}

// e^x for every x, subnormal results, infinities and NaN included; exp(0) is 1, error below 1 ulp.
template <class L>
RC_HOST_DEVICE typename L::Float exp(typename L::Float x) {
  if constexpr (std::is_same_v<typename L::Real, double>) {
    return ::exp(x);
  } else {
    using Float = typename L::Float;
    using Int = typename L::Int;
    using Uint = typename L::Uint;
    // NaN passes both: see L::max.
    const Float v = L::min(L::splat(89.0f), L::max(L::splat(-104.0f), x));
    // Adding 1.5 * 2^23 rounds to an integer k and leaves it in the low bits.
    const Float shifted = L::fma(v, L::splat(1.44269502f), L::splat(0x1.8p23f));
    const Float k = shifted - L::splat(0x1.8p23f);
    const Float r =
        L::fma(k, L::splat(-1.42860677e-6f), L::fma(k, L::splat(-0.693145752f), v));  // v - k ln 2
    constexpr float c[] = {0.49999994f, 0.166665211f, 0.041668389f, 0.00836874545f,
                           0.00138145383f};  // (e^r - 1 - r) / r^2, error 3.1e-9 of e^r
    const Float y = L::splat(1.0f) + L::fma(r * r, horner<L>(r, c), r);
    // 2^k in two factors, because k goes from -150 to 128.
    const Uint bits = L::template as<Uint>(shifted) - 0x4B400000u;
    const Uint half = L::template as<Uint>(L::template as<Int>(bits) >> 1);
    const Uint low = (half + 127u) << 23, high = (bits - half + 127u) << 23;
    return y * L::template as<Float>(low) * L::template as<Float>(high);
  }
}

// u^p for u in [0, infinity] and p > 0; above 1 it is 1. NaN stays NaN, and what is below 2^-126
// counts as 2^-126.
template <class L>
RC_HOST_DEVICE typename L::Float pow_unit(typename L::Float u, typename L::Real p) {
  using Real = typename L::Real;
  const auto v = L::min(L::splat(Real(1)), L::max(L::splat(Real(0x1p-126)), u));
  return exp<L>(L::splat(p) * log<L>(v)) + (v - v);
}

template <class L>
RC_HOST_DEVICE typename L::Float abs(typename L::Float x) {
  using Uint = typename L::Uint;
  using Bits = std::conditional_t<std::is_same_v<typename L::Real, double>, uint64_t, uint32_t>;
  return L::template as<typename L::Float>(L::template as<Uint>(x) & (~Bits{0} >> 1));
}

// |x| with the sign of y.
template <class L>
RC_HOST_DEVICE typename L::Float copysign(typename L::Float x, typename L::Float y) {
  using Uint = typename L::Uint;
  using Bits = std::conditional_t<std::is_same_v<typename L::Real, double>, uint64_t, uint32_t>;
  const Uint magnitude = L::template as<Uint>(x) & (~Bits{0} >> 1);
  return L::template as<typename L::Float>(magnitude |
                                           (L::template as<Uint>(y) & ~(~Bits{0} >> 1)));
}

// 1 where x > 0, 0 where x is 0; NaN stays NaN. x is not negative.
template <class L>
RC_HOST_DEVICE typename L::Float positive(typename L::Float x) {
  using Real = typename L::Real;
  constexpr Real big = std::is_same_v<Real, double> ? Real(0x1p600) : Real(0x1p100);
  return L::min(L::splat(Real(1)), x * L::splat(big) * L::splat(big));
}

// The square root of a -2 ln(u), which is 0 or in [2^-24, 2^6).
template <class L>
RC_HOST_DEVICE typename L::Float root_of_log(typename L::Float a) {
#if defined(__CUDA_ARCH__)
  // What sqrtf does there, without its branch for what does not occur; of 0 the root stays 0.
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(::fmaxf(a, 0x1p-100f)));
  const float root = a * inverse;
  return ::fmaf(::fmaf(-root, root, a), 0.5f * inverse, root);
#else
  return L::sqrt(a);
#endif
}

// One Box-Muller pair. `radius` becomes u = (radius + 1/2) / 2^32 in float32, so |z| < 6.77. Of
// `angle`, the top bit is the sign of both outputs and the rest a v in [-1, 1): (cos, sin)(pi v /
// 2) covers the half circle with cos >= 0, the sign the other half. No quadrant has to be sorted
// out, and the distribution is symmetric bit for bit.
template <class L>
RC_HOST_DEVICE void box_muller(typename L::Uint radius, typename L::Uint angle,
                               typename L::Float& z0, typename L::Float& z1) {
  using Float = typename L::Float;
  using Int = typename L::Int;
  using Uint = typename L::Uint;
  const Float u = L::fma(L::from_uint(radius), L::splat(0x1p-32f), L::splat(0x1p-33f));
  const Float r = root_of_log<L>(neg_two_log<L>(u));
  const Float signed_r = L::template as<Float>(L::template as<Uint>(r) ^ (angle & 0x80000000u));
  const Float v = L::from_int(L::template as<Int>(angle << 1)) * L::splat(0x1p-31f);
  const Float v2 = v * v;
  constexpr float cosine[] = {0.99999994f, -1.23369825f, 0.253650755f, -0.0208106283f,
                              0.000858190644f};  // error 4.7e-8
  constexpr float sine[] = {1.57079637f, -0.645963728f, 0.0796896815f, -0.00467376644f,
                            0.000151485132f};  // 5.3e-9
  z0 = signed_r * horner<L>(v2, cosine);
  z1 = signed_r * (v * horner<L>(v2, sine));
}

}  // namespace RC_ISA
}  // namespace robustcore
