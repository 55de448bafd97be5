// Winograd's minimal filtering F(M x M, 3 x 3): M x M outputs of a 3 x 3 convolution from a patch
// of (M + 2) x (M + 2) inputs with one product a patch element, where the plain sum has 9 an
// output. One-dimensional maps; a kernel applies them along rows, then along columns. With B, G, A
// the matrices of Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016:
//   patch = B^T d,  result = A^T m,  result_adjoint = A y,  kernel = G g,  kernel_adjoint = G^T u.
#pragma once

#include "common/lanes.h"

namespace robustcore::lipschitz {
inline namespace RC_ISA {

template <int M>
struct Winograd;

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
  static RC_HOST_DEVICE void kernel(const double (&g)[3], double (&u)[4]) {
    u[0] = g[0];
    u[1] = 0.5 * (g[0] + g[1] + g[2]);
    u[2] = 0.5 * (g[0] - g[1] + g[2]);
    u[3] = g[2];
  }
  template <class F>
  static RC_HOST_DEVICE void kernel_adjoint(const F (&u)[4], F (&g)[3]) {
    const F half = Lanes::splat(0.5f), sum = half * (u[1] + u[2]);
    g[0] = u[0] + sum;
    g[1] = half * (u[1] - u[2]);
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
  static RC_HOST_DEVICE void kernel(const double (&g)[3], double (&u)[6]) {
    u[0] = g[0] / (a2 * b2);
    u[1] = wa * (g[0] + a * g[1] + a2 * g[2]);
    u[2] = wa * (g[0] - a * g[1] + a2 * g[2]);
    u[3] = wb * (g[0] + b * g[1] + b2 * g[2]);
    u[4] = wb * (g[0] - b * g[1] + b2 * g[2]);
    u[5] = g[2];
  }
  template <class F>
  static RC_HOST_DEVICE void kernel_adjoint(const F (&u)[6], F (&g)[3]) {
    const F sum_a = scaled(wa, u[1] + u[2]), sum_b = scaled(wb, u[3] + u[4]);
    g[0] = times(1 / (a2 * b2), u[0], sum_a + sum_b);
    g[1] = times(a * wa, u[1] - u[2], scaled(b * wb, u[3] - u[4]));
    g[2] = times(a2, sum_a, times(b2, sum_b, u[5]));
  }

 private:
  template <class F>
  static RC_HOST_DEVICE F scaled(double k, F x) {
    return Lanes::splat(static_cast<float>(k)) * x;
  }
  template <class F>
  static RC_HOST_DEVICE F times(double k, F x, F plus) {
    return Lanes::fma(Lanes::splat(static_cast<float>(k)), x, plus);
  }
};

}  // namespace RC_ISA
}  // namespace robustcore::lipschitz
