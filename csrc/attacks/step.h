// A step of an attack: along the gradient, back on the ball and the box, with momentum; the
// arguments of its kernels and the arithmetic that both devices run. A projection is a step without
// a gradient.
#pragma once

#include "attacks/ball.h"
#include "attacks/narrow.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::attacks {

// z = P(x + step_size direction(grad)); out = z, or with `previous`
// P(x + momentum (z - x) + (1 - momentum) (x - previous)).
struct StepArgs {
  int64_t rows, elements;
  int64_t channels;  // of a pixel; in a row one channel comes after the other
  Norm norm;
  bool exact;                  // P is the projection; else in l2 it scales, then clips
  StridedView x, x0;           // [rows, elements]
  StridedView grad, previous;  // [rows, elements]; data null: none
  RowParameter eps, step_size, momentum;
  RowParameter topk;  // the share of elements that move in l1
  double low, high;   // values of out's dtype
  StridedView place;  // [rows, elements]: where out lies
  void* out;          // of the dtype of x and x0; may be x or previous itself
};

// A unit is a row. `scratch` holds scratch_elements() of the arithmetic type.
RC_VARIANTS(step, const StepArgs& args, float* scratch, int64_t begin, int64_t end);
void step_cuda(const StepArgs& args, void* stream);

// APGD in l1 has none; nor has PGD in l0.
constexpr bool has_momentum(Norm norm) {
  return norm == Norm::kLinf || norm == Norm::kL2;
}

// Where x, x0, grad and previous are converted.
inline int64_t scratch_elements(const StepArgs& args) {
  return 4 * args.elements;
}

inline namespace RC_ISA {

// Calls body with the norm as a constant.
template <class Body>
RC_HOST_DEVICE void for_norm(Norm norm, const Body& body) {
  switch (norm) {
    case Norm::kLinf:
      return body(std::integral_constant<Norm, Norm::kLinf>{});
    case Norm::kL2:
      return body(std::integral_constant<Norm, Norm::kL2>{});
    case Norm::kL1:
      return body(std::integral_constant<Norm, Norm::kL1>{});
    case Norm::kL0:
      return body(std::integral_constant<Norm, Norm::kL0>{});
  }
}

// The steepest direction: sign(g) in linf; g / |g|_2 in l2; in l1 the signs of the largest |g|,
// over their number; g / |g|_1 in l0. 0 where the gradient is 0 or not finite.
template <class L, Norm kNorm>
struct Direction {
  using T = typename L::Real;
  T step = 0;   // of a sign, or of g * scale
  T scale = 1;  // so that squares neither overflow nor vanish
  T least = 0;  // |g| that moves

  template <class Row, class G>
  RC_HOST_DEVICE void set(Row& row, const G& g, double step_size, double topk) {
    if constexpr (kNorm == Norm::kLinf) {
      step = static_cast<T>(step_size);
      return;
    }
    const auto magnitude = [&](int64_t k, int n) { return abs<L>(g(k, n)); };
    if constexpr (kNorm == Norm::kL1) {
      const auto all = static_cast<double>(row.elements);
      const double left = (1 - topk) * all;
      const auto resting = static_cast<int64_t>(left < 0 ? 0 : left < all - 1 ? left : all - 1);
      least = nth_largest(row, row.elements, row.elements - resting, magnitude);
      // Zeros do not move, however many were asked for.
      if (least == T(0)) least = bit_cast<T>(BitsOf<T>{1});
      const double moving = count_from(row, row.elements, least, magnitude);
      if (moving > 0) step = static_cast<T>(step_size / moving);
    } else {
      const T most = row.max(row.elements, magnitude);
      if (!(most > T(0) && finite(most))) return;
      scale = unit_scale(most);
      const double sum = row.sums(row.elements,
                                  [&](int64_t k, int n, auto& a, auto&) {
                                    const auto scaled = magnitude(k, n) * L::splat(scale);
                                    a = a + (kNorm == Norm::kL2 ? scaled * scaled : scaled);
                                  })
                             .a;
      if (sum > 0 && finite(sum)) {
        step = static_cast<T>(step_size / (kNorm == Norm::kL2 ? ::sqrt(sum) : sum));
      }
    }
  }

  RC_HOST_DEVICE typename L::Float operator()(typename L::Float g) const {
    const auto zero = L::splat(T(0)), a = L::splat(step);
    if constexpr (kNorm == Norm::kL2 || kNorm == Norm::kL0) {
      return g * L::splat(scale) * a;
    } else {
      const auto bound = kNorm == Norm::kL1 ? L::splat(least) : zero;
      const auto up = kNorm == Norm::kL1 ? g >= bound : g > bound;
      const auto down = kNorm == Norm::kL1 ? -g >= bound : -g > bound;
      return up ? a : (down ? -a : zero);
    }
  }
};

// What a row has in place of RowParameters.
struct StepNumbers {
  double eps, step_size, topk, momentum;
};

template <class T>
RC_HOST_DEVICE StepNumbers numbers_of(const StepArgs& args, int64_t at) {
  return {at_row<T>(args.eps, at), at_row<T>(args.step_size, at), at_row<T>(args.topk, at),
          at_row<T>(args.momentum, at)};
}

// The row's step; `row` brings x(k, n), x0(k, n), grad(k, n), previous(k, n) and write(k, count,
// f), which stores f(k + i, n) at the elements from k on.
template <Norm kNorm, class Row>
RC_HOST_DEVICE void step_row(const StepArgs& args, const StepNumbers& numbers, Row& row) {
  using L = typename Row::L;
  using T = typename Row::T;
  const auto x = [&](int64_t k, int n) { return row.x(k, n); };
  const auto x0 = [&](int64_t k, int n) { return row.x0(k, n); };
  const auto write = [&](const auto& f) {
    // Lanes stay within a channel, whose pixels l0 looks up.
    const int64_t count = kNorm == Norm::kL0 ? args.elements / args.channels : args.elements;
    for (int64_t k = 0; k < args.elements; k += count) row.write(k, count, f);
  };
  const Ball<L> ball(numbers.eps, args.low, args.high);
  Direction<L, kNorm> direction;
  if (args.grad.data) {
    const auto grad = [&](int64_t k, int n) { return row.grad(k, n); };
    direction.set(row, grad, numbers.step_size, numbers.topk);
  }
  const bool moves = direction.step != T(0);
  const auto moved = [&](int64_t k, int n) {
    return moves ? x(k, n) + direction(row.grad(k, n)) : x(k, n);
  };
  const Projection<L, kNorm> project(row, ball, args.channels, args.exact, moved, x0);
  const auto z = [&](int64_t k, int n) { return project(k, n, moved, x0); };
  if constexpr (has_momentum(kNorm)) {
    if (args.previous.data) {
      const T momentum = static_cast<T>(numbers.momentum);
      const auto swung = [&](int64_t k, int n) {
        const auto m = L::splat(momentum), here = x(k, n);
        const auto rest = L::splat(T(1)) - m;
        return here + m * (z(k, n) - here) + rest * (here - row.previous(k, n));
      };
      const Projection<L, kNorm> again(row, ball, args.channels, args.exact, swung, x0);
      return write([&](int64_t k, int n) { return again(k, n, swung, x0); });
    }
  }
  write(z);
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
