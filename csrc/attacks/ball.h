// Projections of a row on a ball and a box: the one number that each takes, and where an element
// goes with it. None of them sorts: a norm that falls with its number has it found by Newton's
// steps.
#pragma once

#include "attacks/rows.h"

namespace robustcore::attacks {

// As robustcore/ops/attacks/norms.py numbers them.
enum class Norm : int32_t { kLinf, kL2, kL1, kL0 };

inline namespace RC_ISA {

// A row's ball around x0 and the box, low <= x <= high. The linf ball holds to the bit, so its
// radius is rounded down.
template <class L>
struct Ball {
  using T = typename L::Real;
  using Float = typename L::Float;
  double eps;
  Float low, high;

  RC_HOST_DEVICE Ball(double eps_, double low_, double high_)
      : eps(eps_), low(L::splat(static_cast<T>(low_))), high(L::splat(static_cast<T>(high_))) {}
  RC_HOST_DEVICE T radius() const {
    const T nearest = static_cast<T>(eps);
    return static_cast<double>(nearest) > eps ? next_below<OneLane<T>>(nearest) : nearest;
  }
  RC_HOST_DEVICE Float clip(Float v) const {  // a NaN to `low`
    return L::min(L::max(v, low), high);
  }
  // How far x0 is from the box's edge in the direction of d.
  RC_HOST_DEVICE Float room(Float d, Float x0) const {
    const Float zero = L::splat(T(0));
    return L::max(d > zero ? high - x0 : x0 - low, zero);
  }
};

// The largest value not above x + e, e not negative: one below the rounded sum where the exact one
// is less.
template <class L>
RC_HOST_DEVICE typename L::Float sum_below(typename L::Float x, typename L::Float e) {
  using T = typename L::Real;
  const auto u = x + e, b = u - x;
  const auto error = (x - (u - b)) + (e - b);  // x + e - u, exactly (Knuth)
  return error < L::splat(T(0)) ? next_below<L>(u) : u;
}

template <class L, Norm kNorm>
struct Projection;

template <class L>
struct Projection<L, Norm::kLinf> {
  const Ball<L>& ball;
  typename L::Real radius;

  template <class Row, class V, class X0>
  RC_HOST_DEVICE Projection(Row&, const Ball<L>& ball_, int64_t, bool, const V&, const X0&)
      : ball(ball_), radius(ball_.radius()) {}

  template <class V, class X0>
  RC_HOST_DEVICE typename L::Float operator()(int64_t k, int n, const V& v, const X0& x0) const {
    const auto center = x0(k, n), e = L::splat(radius);
    const auto upper = sum_below<L>(center, e), lower = -sum_below<L>(-center, e);
    return ball.clip(L::min(L::max(v(k, n), lower), upper));
  }
};

// x0 + s (v - x0), clipped: s is eps / |v - x0|, or exact where the norm of the clipped is eps.
template <class L>
struct Projection<L, Norm::kL2> {
  using T = typename L::Real;
  const Ball<L>& ball;
  T s = 1;

  template <class Row, class V, class X0>
  RC_HOST_DEVICE Projection(Row& row, const Ball<L>& ball_, int64_t, bool exact, const V& v,
                            const X0& x0)
      : ball(ball_) {
    const double target = ball.eps * ball.eps;
    // The squared norm is concave in t = s^2: Newton's steps from the left stay there and end at
    // the root, once no more elements reach the box. At 0 none does.
    double t = 0;
    RC_ROLL
    for (int i = 0; i <= 64; ++i) {
      const Sums part = squares(row, static_cast<T>(::sqrt(t)), v, x0);
      if (i == 0) {
        if (part.b <= target) return;
        t = target / part.b;
        if (exact) continue;
        s = static_cast<T>(ball.eps / ::sqrt(part.b));
        return;
      }
      const double next = part.b > 0 ? (target - part.a) / part.b : 1.0;
      if (next >= 1) return;
      if (!(next > t)) break;
      t = next;
    }
    s = static_cast<T>(::sqrt(t));
  }

  // Of x0 + at (v - x0): the squares that the box bounds, and those of v - x0 that it does not.
  template <class Row, class V, class X0>
  RC_HOST_DEVICE Sums squares(Row& row, T at, const V& v, const X0& x0) const {
    return row.sums(row.elements,
                    [&](int64_t k, int n, typename L::Float& a, typename L::Float& b) {
                      const auto zero = L::splat(T(0)), center = x0(k, n), d = v(k, n) - center;
                      const auto room = ball.room(d, center);
                      const auto bounded = L::splat(at) * abs<L>(d) > room;
                      a = a + (bounded ? room * room : zero);
                      b = b + (bounded ? zero : d * d);
                    });
  }

  template <class V, class X0>
  RC_HOST_DEVICE typename L::Float operator()(int64_t k, int n, const V& v, const X0& x0) const {
    if (s == T(1)) return ball.clip(v(k, n));
    const auto center = x0(k, n);
    return ball.clip(center + L::splat(s) * (v(k, n) - center));
  }
};

// x0 + sign(d) max(|d| - t, 0), clipped, d = v - x0.
template <class L>
struct Projection<L, Norm::kL1> {
  using T = typename L::Real;
  const Ball<L>& ball;
  T t = 0;

  template <class Row, class V, class X0>
  RC_HOST_DEVICE Projection(Row& row, const Ball<L>& ball_, int64_t, bool, const V& v, const X0& x0)
      : ball(ball_) {
    // The norm falls from above eps at `below` to at most eps at `above`.
    T below = 0, above = 0;
    constexpr double tolerance = std::is_same_v<T, double> ? 0x1p-51 : 0x1p-23;
    RC_ROLL
    for (int i = 0; i <= 64; ++i) {
      const Sums part = norm_and_slope(row, t, v, x0);
      if (i == 0) {
        if (part.a <= ball.eps) return;
        above = row.max(row.elements, [&](int64_t k, int n) { return abs<L>(v(k, n) - x0(k, n)); });
      } else {
        if (::fabs(part.a - ball.eps) <= tolerance * ball.eps) return;
        (part.a > ball.eps ? below : above) = t;
      }
      T next = static_cast<T>(static_cast<double>(t) + (part.a - ball.eps) / part.b);
      if (!(next > below && next < above)) next = below + (above - below) / 2;
      if (!(next > below && next < above)) break;
      t = next;
    }
    t = above;
  }

  // The norm with threshold `at`, and how many elements move with it.
  template <class Row, class V, class X0>
  RC_HOST_DEVICE Sums norm_and_slope(Row& row, T at, const V& v, const X0& x0) const {
    return row.sums(row.elements,
                    [&](int64_t k, int n, typename L::Float& a, typename L::Float& b) {
                      const auto zero = L::splat(T(0)), center = x0(k, n), d = v(k, n) - center;
                      const auto over = abs<L>(d) - L::splat(at), room = ball.room(d, center);
                      a = a + L::min(L::max(over, zero), room);
                      b = b + (over > zero ? (over < room ? L::splat(T(1)) : zero) : zero);
                    });
  }

  template <class V, class X0>
  RC_HOST_DEVICE typename L::Float operator()(int64_t k, int n, const V& v, const X0& x0) const {
    if (t == T(0)) return ball.clip(v(k, n));
    const auto center = x0(k, n), d = v(k, n) - center;
    const auto over = L::max(abs<L>(d) - L::splat(t), L::splat(T(0)));
    // Rounded towards x0: the roundings of many small steps would add up.
    const auto sign = copysign<L>(L::splat(T(1)), d);
    return ball.clip(sign * sum_below<L>(sign * center, over));
  }
};

// The eps pixels that gain most, all channels of one together, clipped; x0 elsewhere. Of equal ones
// the first.
template <class L>
struct Projection<L, Norm::kL0> {
  using T = typename L::Real;
  using Float = typename L::Float;
  const Ball<L>& ball;
  int64_t channels, pixels, last;
  T least = 0;

  template <class Row, class V, class X0>
  RC_HOST_DEVICE Projection(Row& row, const Ball<L>& ball_, int64_t channels_, bool, const V& v,
                            const X0& x0)
      : ball(ball_), channels(channels_), pixels(row.elements / channels_), last(pixels) {
    const auto kept =
        ball.eps < static_cast<double>(pixels) ? static_cast<int64_t>(ball.eps) : pixels;
    const auto of = [&](int64_t p, int n) { return gain(p, n, v, x0); };
    least = nth_largest(row, pixels, kept, of);
    if (least == T(0)) return;
    const auto above = [&] {
      return row.sums(pixels, [&](int64_t p, int n, Float& a, Float& b) {
        const auto one = L::splat(T(1)), zero = L::splat(T(0));
        const auto value = of(p, n), bound = L::splat(least);
        a = a + (value > bound ? one : zero);
        b = b + (value >= bound ? one : zero);
      });
    }();
    if (above.b <= static_cast<double>(kept)) return;
    // Of those that gain just as much, as many of the first as there is room for.
    int64_t low = 0, high = pixels;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      const double found = row.sums(pixels,
                                    [&](int64_t p, int n, Float& a, Float&) {
                                      const int64_t left = middle - p < n ? middle - p : n;
                                      const auto one = one_where<L>(first_lanes(left)),
                                                 zero = L::splat(T(0));
                                      a = a + (of(p, n) == L::splat(least) ? one : zero);
                                    })
                               .a;
      (above.a + found <= static_cast<double>(kept) ? low : high) =
          above.a + found <= static_cast<double>(kept) ? middle : middle - 1;
    }
    last = low;
  }

  // By how much closer to v a pixel comes if it may leave x0.
  template <class V, class X0>
  RC_HOST_DEVICE Float gain(int64_t p, int n, const V& v, const X0& x0) const {
    auto sum = L::splat(T(0));
    RC_ROLL
    for (int64_t c = 0; c < channels; ++c) {
      const auto value = v(c * pixels + p, n), d = value - x0(c * pixels + p, n);
      const auto left = value - ball.clip(value);
      sum = sum + (d * d - left * left);
    }
    return L::max(sum, L::splat(T(0)));
  }

  template <class V, class X0>
  RC_HOST_DEVICE Float operator()(int64_t k, int n, const V& v, const X0& x0) const {
    const int64_t p = k % pixels;
    const auto bound = L::splat(least), gains = gain(p, n, v, x0), zero = L::splat(T(0));
    const auto early = one_where<L>(first_lanes(last - p));
    const auto kept = gains > bound ? L::splat(T(1)) : (gains == bound ? early : zero);
    return kept > zero ? ball.clip(v(k, n)) : x0(k, n);
  }
};

}  // namespace RC_ISA
}  // namespace robustcore::attacks
