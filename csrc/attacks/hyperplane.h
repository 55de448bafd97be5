// Projection of rows on a hyperplane and a box, as FAB takes it: the smallest step of a norm that
// reaches the plane without leaving the box, from one number a row.
#pragma once

#include "attacks/ball.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::attacks {

// out is the smallest d with <w, x + d> = offset and low <= x + d <= high; where there is none, the
// corner of the box nearest to the plane.
struct HyperplaneArgs {
  int64_t rows, elements;
  Norm norm;            // kLinf, kL2 or kL1
  StridedView x, w;     // [rows, elements]
  RowParameter offset;  // [rows]
  double low, high;     // values of x's dtype
  StridedView place;    // [rows, elements]: where out lies
  void* out;            // of the dtype of x
};

// A unit is a row. `scratch` holds two rows of the arithmetic type.
RC_VARIANTS(hyperplane, const HyperplaneArgs& args, float* scratch, int64_t begin, int64_t end);
void hyperplane_cuda(const HyperplaneArgs& args, void* stream);

inline namespace RC_ISA {

// Calls body with a norm that has a dual, as a constant.
template <class Body>
RC_HOST_DEVICE void for_dual_norm(Norm norm, const Body& body) {
  if (norm == Norm::kLinf) return body(std::integral_constant<Norm, Norm::kLinf>{});
  if (norm == Norm::kL2) return body(std::integral_constant<Norm, Norm::kL2>{});
  body(std::integral_constant<Norm, Norm::kL1>{});
}

// How far each element goes along its own sign of w: in linf min(t, room), in l2 min(t |w|, room);
// in l1 all of the room where |w| is above t, a share of it where it is t.
template <class L, Norm kNorm>
struct Reach {
  using T = typename L::Real;
  using Float = typename L::Float;
  Float low, high;
  T scale = 1;  // of w, so that squares neither overflow nor vanish
  T sign = 1;   // of the step in <w, d>
  T t = 0, share = 1;

  template <class Row>
  RC_HOST_DEVICE Reach(Row& row, double offset, double low_, double high_)
      : low(L::splat(static_cast<T>(low_))), high(L::splat(static_cast<T>(high_))) {
    const auto magnitude = [&](int64_t k, int n) { return abs<L>(row.w(k, n) * L::splat(scale)); };
    T most = row.max(row.elements, magnitude);
    if (!(most > T(0) && finite(most))) {
      scale = 0;  // nothing moves
      return;
    }
    scale = unit_scale(most);
    most *= scale;
    const double missing = offset * static_cast<double>(scale) -
                           row.sums(row.elements,
                                    [&](int64_t k, int n, Float& a, Float&) {
                                      a = L::fma(row.w(k, n) * L::splat(scale), row.x(k, n), a);
                                    })
                               .a;
    sign = missing < 0 ? T(-1) : T(1);
    find(row, missing < 0 ? -missing : missing, most);
  }

  // As far as the box lets an element go.
  template <class Row>
  RC_HOST_DEVICE Float room(const Row& row, int64_t k, int n) const {
    const auto zero = L::splat(T(0)), x = row.x(k, n);
    return L::max(row.w(k, n) * L::splat(sign) > zero ? high - x : x - low, zero);
  }

  template <class Row>
  RC_HOST_DEVICE void find(Row& row, double distance, T most) {
    const auto magnitude = [&](int64_t k, int n) { return abs<L>(row.w(k, n) * L::splat(scale)); };
    if constexpr (kNorm == Norm::kL1) {
      // The elements that gain most a unit go first.
      const auto gained = [&](T bound) {
        return row.sums(row.elements, [&](int64_t k, int n, Float& a, Float& b) {
          const auto zero = L::splat(T(0)), m = magnitude(k, n), gain = m * room(row, k, n);
          a = a + (m > L::splat(bound) ? gain : zero);
          b = b + (m == L::splat(bound) ? gain : zero);
        });
      };
      Sums at{0, 0};
      t = largest(most, [&](T bound) {
        const Sums tried = gained(bound);
        const bool enough = tried.a + tried.b >= distance;
        if (enough) at = tried;
        return enough;
      });
      if (t > T(0) && at.b > 0) share = static_cast<T>((distance - at.a) / at.b);
    } else {
      // What is gained is concave in t: Newton's steps from 0 stay below the root and end there.
      double now = 0;
      RC_ROLL
      for (int i = 0; i < 64; ++i) {
        t = static_cast<T>(now);
        const Sums part = row.sums(row.elements, [&](int64_t k, int n, Float& a, Float& b) {
          const auto zero = L::splat(T(0)), m = magnitude(k, n), bound = room(row, k, n);
          const auto bounded = (kNorm == Norm::kL2 ? L::splat(t) * m : L::splat(t)) >= bound;
          a = a + (bounded ? m * bound : zero);
          b = b + (bounded ? zero : (kNorm == Norm::kL2 ? m * m : m));
        });
        const double next = part.b > 0 ? (distance - part.a) / part.b : 0x1p100;
        if (!(next > now)) break;
        now = next;
      }
      t = static_cast<T>(now);
    }
  }

  template <class Row>
  RC_HOST_DEVICE Float operator()(const Row& row, int64_t k, int n) const {
    const auto zero = L::splat(T(0)), w = row.w(k, n), m = abs<L>(w * L::splat(scale));
    const auto bound = room(row, k, n);
    Float reach;
    if constexpr (kNorm == Norm::kLinf) {
      reach = L::min(L::splat(t), bound);
    } else if constexpr (kNorm == Norm::kL2) {
      reach = L::min(L::splat(t) * m, bound);
    } else {
      reach = m > L::splat(t) ? bound : (m == L::splat(t) ? L::splat(share) * bound : zero);
    }
    return m > zero ? copysign<L>(reach, w * L::splat(sign)) : zero;
  }
};

template <Norm kNorm, class Row>
RC_HOST_DEVICE void hyperplane_row(const HyperplaneArgs& args, int64_t at, Row& row) {
  using T = typename Row::T;
  const Reach<typename Row::L, kNorm> reach(row, at_row<T>(args.offset, at), args.low, args.high);
  row.write(0, args.elements, [&](int64_t k, int n) { return reach(row, k, n); });
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
