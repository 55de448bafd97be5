// Uniform words to normals, by our own polynomials so that every device gives the same bits.
// The minimax coefficients were fitted in 40-digit arithmetic (Remez) and rounded to float32.
#pragma once

#include "common/lanes.h"

namespace robustcore {
inline namespace RC_ISA {

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
  const Float r = L::sqrt(neg_two_log<L>(u));
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
