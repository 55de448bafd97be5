// Winograd's minimal filtering F(M x M, 3 x 3): M x M results of a 3 x 3 convolution from a patch
// of (M + 2) x (M + 2) inputs with one product a patch element, where the plain sum has 9 a result.
// One-dimensional maps, to be applied along rows, then along columns. With B, G, A the matrices of
// Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016:
//   patch = B^T d,  result = A^T m,  result_adjoint = A y,  filter = G g,  filter_adjoint = G^T u.
#pragma once

#include "common/lanes.h"

namespace robustcore {
inline namespace RC_ISA {

template <int M>
struct Winograd;

// k x and k x + plus, of doubles or of lanes.
inline double scaled(double k, double x) {
  return k * x;
}
inline double times(double k, double x, double plus) {
  return __builtin_fma(k, x, plus);
}
inline Lanes::Float scaled(double k, Lanes::Float x) {
  return Lanes::splat(static_cast<float>(k)) * x;
}
inline Lanes::Float times(double k, Lanes::Float x, Lanes::Float plus) {
  return Lanes::fma(Lanes::splat(static_cast<float>(k)), x, plus);
}

// Interpolation points 0, 1, -1, infinity: additions only, so it rounds about as the plain sum
// does.
template <>
struct Winograd<2> {
  static constexpr int kPatch = 4;

  template <class F>
  static RC_HOST_DEVICE void patch(const F (&d)[4], F (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  template <class F>
  static RC_HOST_DEVICE void result(const F (&m)[4], F (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  template <class F>
  static RC_HOST_DEVICE void result_adjoint(const F (&y)[2], F (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = F{} - y[1];
  }
  template <class F>
  static RC_HOST_DEVICE void filter(const F (&g)[3], F (&u)[4]) {
    const F sum = g[0] + g[2];
    u[0] = g[0];
    u[1] = scaled(0.5, sum + g[1]);
    u[2] = scaled(0.5, sum - g[1]);
    u[3] = g[2];
  }
  template <class F>
  static RC_HOST_DEVICE void filter_adjoint(const F (&u)[4], F (&g)[3]) {
    const F sum = scaled(0.5, u[1] + u[2]);
    g[0] = u[0] + sum;
    g[1] = scaled(0.5, u[1] - u[2]);
    g[2] = u[3] + sum;
  }
};

// Points 0, +-a, +-b, infinity with a = 3/4, b = 3/2, exact in binary: they round half as much as
// the usual 1 and 2, and three to seven times as much as the plain sum.
template <>
struct Winograd<4> {
  static constexpr int kPatch = 6;
  static constexpr double a = 0.75, b = 1.5, a2 = a * a, b2 = b * b;
  static constexpr double wa = 1 / (2 * a2 * (a2 - b2)), wb = 1 / (2 * b2 * (b2 - a2));

  template <class F>
  static RC_HOST_DEVICE void patch(const F (&d)[6], F (&v)[6]) {
    const F even_a = times(-b2, d[2], d[4]), odd_a = times(-b2, d[1], d[3]);
    const F even_b = times(-a2, d[2], d[4]), odd_b = times(-a2, d[1], d[3]);
    v[0] = times(a2 * b2, d[0], times(-(a2 + b2), d[2], d[4]));
    v[1] = times(a, odd_a, even_a);
    v[2] = times(-a, odd_a, even_a);
    v[3] = times(b, odd_b, even_b);
    v[4] = times(-b, odd_b, even_b);
    v[5] = times(a2 * b2, d[1], times(-(a2 + b2), d[3], d[5]));
  }
  template <class F>
  static RC_HOST_DEVICE void result(const F (&m)[6], F (&y)[4]) {
    const F sum_a = m[1] + m[2], sum_b = m[3] + m[4];
    const F difference_a = m[1] - m[2], difference_b = m[3] - m[4];
    y[0] = m[0] + sum_a + sum_b;
    y[1] = times(a, difference_a, scaled(b, difference_b));
    y[2] = times(a2, sum_a, scaled(b2, sum_b));
    y[3] = times(a * a2, difference_a, times(b * b2, difference_b, m[5]));
  }
  template <class F>
  static RC_HOST_DEVICE void result_adjoint(const F (&y)[4], F (&m)[6]) {
    const F even_a = times(a2, y[2], y[0]), odd_a = scaled(a, times(a2, y[3], y[1]));
    const F even_b = times(b2, y[2], y[0]), odd_b = scaled(b, times(b2, y[3], y[1]));
    m[0] = y[0];
    m[1] = even_a + odd_a;
    m[2] = even_a - odd_a;
    m[3] = even_b + odd_b;
    m[4] = even_b - odd_b;
    m[5] = y[3];
  }
  template <class F>
  static RC_HOST_DEVICE void filter(const F (&g)[3], F (&u)[6]) {
    const F even_a = times(a2, g[2], g[0]), even_b = times(b2, g[2], g[0]);
    u[0] = scaled(1 / (a2 * b2), g[0]);
    u[1] = scaled(wa, times(a, g[1], even_a));
    u[2] = scaled(wa, times(-a, g[1], even_a));
    u[3] = scaled(wb, times(b, g[1], even_b));
    u[4] = scaled(wb, times(-b, g[1], even_b));
    u[5] = g[2];
  }
  template <class F>
  static RC_HOST_DEVICE void filter_adjoint(const F (&u)[6], F (&g)[3]) {
    const F sum_a = scaled(wa, u[1] + u[2]), sum_b = scaled(wb, u[3] + u[4]);
    g[0] = times(1 / (a2 * b2), u[0], sum_a + sum_b);
    g[1] = times(a * wa, u[1] - u[2], scaled(b * wb, u[3] - u[4]));
    g[2] = times(a2, sum_a, times(b2, sum_b, u[5]));
  }
};

}  // namespace RC_ISA
}  // namespace robustcore
