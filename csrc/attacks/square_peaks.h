// Square in l2 and l1: how much of the ball each window has, and how its peaks share it.
#pragma once

#include "attacks/square.h"

namespace robustcore::attacks {
inline namespace RC_ISA {

// Two peaks of opposite sign that share a square of this size, one above the other: each falls off
// in rings around its middle, and has the norm 1.
template <class T>
struct Peaks {
  const double* rings;
  bool squared;  // the norm is l2, else l1
  int64_t size, half;
  T upper_scale = 1, lower_scale = 1;

  RC_HOST_DEVICE Peaks(const SquareArgs& args, int64_t size_)
      : rings(args.rings), squared(args.norm == Norm::kL2), size(size_), half(size_ / 2) {}

  template <class Row>
  RC_HOST_DEVICE void normalize(Row& row) {
    const Sums sums = row.sums(size * size, [&](int64_t i, int, T& upper, T& lower) {
      (i / size < half ? upper : lower) += power((*this)(i / size, i % size));
    });
    upper_scale = half > 0 ? 1 / root(static_cast<T>(sums.a)) : T(0);
    lower_scale = 1 / root(static_cast<T>(sums.b));
  }
  RC_HOST_DEVICE T operator()(int64_t y, int64_t x) const {
    const bool upper = y < half;
    const int64_t height = upper ? half : size - half;
    const int64_t down = magnitude((upper ? y : y - half) - height / 2);
    const int64_t aside = magnitude(x - size / 2);
    const int64_t outer = (height > size ? height : size) / 2 + 1;
    const int64_t away = down > aside ? down : aside;
    const T value = static_cast<T>(rings[outer] - rings[away < outer ? away : outer]);
    return upper ? value * upper_scale : -value * lower_scale;
  }
  RC_HOST_DEVICE T power(T v) const {
    return squared ? v * v : v < T(0) ? -v : v;
  }
  RC_HOST_DEVICE T root(T v) const {
    return squared ? static_cast<T>(::sqrt(v)) : v;
  }

 private:
  static RC_HOST_DEVICE int64_t magnitude(int64_t v) {
    return v < 0 ? -v : v;
  }
};

// The row's next point, in the ball but for rounding, not in the box; `row` brings x0(k), best(k),
// sums and write(first, count, f), which stores f(k) at the elements from `first` on.
template <class T, class Row>
struct SquarePeaks {
  static constexpr T kTiny = T(1e-12);
  const SquareArgs& args;
  const SquareDraw& draw;
  Row& row;
  int64_t pixels;
  double eps;

  RC_HOST_DEVICE SquarePeaks(const SquareArgs& args_, const SquareDraw& draw_, int64_t at,
                             Row& row_)
      : args(args_),
        draw(draw_),
        row(row_),
        pixels(args_.height * args_.width),
        eps(at_row<T>(args_.eps, at)) {}

  RC_HOST_DEVICE void run() const {
    draw.size == 0 ? start() : propose();
  }

 private:
  // Five tiles by five, or what fits of them.
  RC_HOST_DEVICE void start() const {
    const int64_t shorter = args.height < args.width ? args.height : args.width;
    const int64_t side = shorter < 5 ? 1 : shorter / 5, across = args.width / side;
    const int64_t down = args.height / side, top = (args.height - down * side) / 2,
                  left = (args.width - across * side) / 2;
    Peaks<T> peaks(args, side);
    peaks.normalize(row);
    const auto pattern = [&](int64_t k) {
      const int64_t c = k / pixels, y = k % pixels / args.width - top, x = k % args.width - left;
      if (y < 0 || x < 0 || y >= down * side || x >= across * side) return T(0);
      const int64_t tile = y / side * across + x / side;
      const T value = peaks(y % side, x % side);
      return draw.plus(tile * args.channels + c) ? value : -value;
    };
    const double size =
        row.sums(args.elements(), [&](int64_t k, int, T& a, T&) { a += peaks.power(pattern(k)); })
            .a;
    const T scale = static_cast<T>(eps / peaks.root(static_cast<T>(size)));
    row.write(0, args.elements(), [&](int64_t k) { return row.x0(k) + scale * pattern(k); });
  }

  RC_HOST_DEVICE T d(int64_t k) const {
    return row.best(k) - row.x0(k);
  }
  RC_HOST_DEVICE bool in_either(int64_t k, int64_t c) const {
    const int64_t y = (k - c * pixels) / args.width, x = (k - c * pixels) % args.width;
    return draw.covers(y, x) || draw.second_covers(y, x);
  }

  RC_HOST_DEVICE void propose() const {
    Peaks<T> peaks(args, draw.size);
    peaks.normalize(row);
    const double used =
        row.sums(args.elements(), [&](int64_t k, int, T& a, T&) { a += peaks.power(d(k)); }).a;
    const double whole = peaks.squared ? eps * eps : eps;
    const double left = used < whole ? (whole - used) / static_cast<double>(args.channels) : 0.0;
    RC_ROLL
    for (int64_t c = 0; c < args.channels; ++c) channel(c, peaks, left);
  }

  RC_HOST_DEVICE void channel(int64_t c, const Peaks<T>& peaks, double left) const {
    const int64_t first = c * pixels, area = draw.size * draw.size;
    const T sign = draw.plus(c) ? T(1) : T(-1);
    const bool across = draw.plus(args.channels);
    const double both = row.sums(pixels,
                                 [&](int64_t p, int, T& a, T&) {
                                   a += in_either(first + p, c) ? peaks.power(d(first + p)) : T(0);
                                 })
                            .a;
    const auto at = [&](int64_t i) {
      return first + (draw.top + i / draw.size) * args.width + draw.left + i % draw.size;
    };
    const T own = peaks.root(static_cast<T>(
        row.sums(area, [&](int64_t i, int, T& a, T&) { a += peaks.power(d(at(i))); }).a));
    const auto added = [&](int64_t y, int64_t x, int64_t k) {
      return sign * (across ? peaks(x, y) : peaks(y, x)) + d(k) / (own + kTiny);
    };
    const T size = peaks.root(static_cast<T>(
        row.sums(area, [&](int64_t i, int, T& a,
                           T&) { a += peaks.power(added(i / draw.size, i % draw.size, at(i))); })
            .a));
    const T scale = peaks.root(static_cast<T>(left + both)) / (size + kTiny);
    row.write(first, pixels, [&](int64_t k) {
      const int64_t y = (k - first) / args.width, x = (k - first) % args.width;
      if (draw.covers(y, x)) return row.x0(k) + scale * added(y - draw.top, x - draw.left, k);
      return draw.second_covers(y, x) ? row.x0(k) : row.best(k);
    });
  }
};

}  // namespace RC_ISA
}  // namespace robustcore::attacks
