#include "attacks/rows_simd.h"
#include "attacks/square_peaks.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

template <class E>
void square_rows(const SquareArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  const int64_t pixels = args.height * args.width;
  for (int64_t at = begin; at < end; ++at) {
    const auto draw = SquareDraw::of<T>(args, at);
    const Ball<OneLane<T>> ball(at_row<T>(args.eps, at), args.low, args.high);
    const T radius = ball.radius();
    const E* const x0 = static_cast<const E*>(args.x0.data) + at * args.x0.image_stride;
    E* const out = static_cast<E*>(args.out) + at * args.place.image_stride;
    if (args.best.data) {
      const E* const best = static_cast<const E*>(args.best.data) + at * args.best.image_stride;
      for (int64_t k = 0; k < args.elements(); ++k) {
        out[element_offset(args.place, k)] = best[element_offset(args.best, k)];
      }
    }
    const int64_t rows = draw.size ? draw.size : args.height;
    const int64_t columns = draw.size ? draw.size : args.width;
    for (int64_t c = 0; c < args.channels; ++c) {
      for (int64_t x = draw.left; x < draw.left + columns; ++x) {
        const bool plus = draw.plus(draw.size ? c : c * args.width + x);
        for (int64_t y = draw.top; y < draw.top + rows; ++y) {
          const int64_t k = c * pixels + y * args.width + x;
          const T center = convert<T>(x0[element_offset(args.x0, k)]);
          out[element_offset(args.place, k)] =
              rounded_towards<E>(square_value(ball, radius, center, plus), center);
        }
      }
    }
  }
}

template <class E>
struct PeaksRow {
  using T = Arithmetic<E>;
  const SquareArgs& args;
  const E *x0_data, *best_data;
  E* out;

  PeaksRow(const SquareArgs& args_, int64_t at)
      : args(args_),
        x0_data(static_cast<const E*>(args_.x0.data) + at * args_.x0.image_stride),
        best_data(static_cast<const E*>(args_.best.data) + at * args_.best.image_stride),
        out(static_cast<E*>(args_.out) + at * args_.place.image_stride) {}
  T x0(int64_t k) const {
    return convert<T>(x0_data[element_offset(args.x0, k)]);
  }
  T best(int64_t k) const {
    return convert<T>(best_data[element_offset(args.best, k)]);
  }
  // Lane by lane: an element has to know its place. Rolled up, since what an element takes is not
  // its addition, and 32 copies of it would take long to compile.
  template <class F>
  Sums sums(int64_t count, const F& f) const {
    Sums total{0, 0};
    for_segments(count, [&](int64_t first, int64_t in_segment) {
      T a[kSums] = {}, b[kSums] = {};
      for (int64_t i = 0; i < in_segment; ++i) f(first + i, 1, a[i % kSums], b[i % kSums]);
      total.a += tree(a), total.b += tree(b);
    });
    return total;
  }
  template <class F>
  void write(int64_t first, int64_t count, const F& f) const {
    for (int64_t k = first; k < first + count; ++k) {
      out[element_offset(args.place, k)] = rounded_towards<E>(f(k), x0(k));
    }
  }
};

template <class E>
void peaks_rows(const SquareArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  for (int64_t at = begin; at < end; ++at) {
    const auto draw = SquareDraw::of<T>(args, at);
    PeaksRow<E> row(args, at);
    SquarePeaks<T, PeaksRow<E>>(args, draw, at, row).run();
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(square)(const SquareArgs& args, int64_t begin, int64_t end) {
  dispatch(args.x0.dtype, [&](auto tag) {
    using E = decltype(tag);
    args.norm == Norm::kLinf ? square_rows<E>(args, begin, end) : peaks_rows<E>(args, begin, end);
  });
}

}  // namespace robustcore::attacks
