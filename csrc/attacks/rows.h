// What the attacks' kernels ask of a row, on both devices: maxima, sums in the one order of
// common/rows.h, and searches made of them.
//
// A kernel's arithmetic is written once, on a Row that the device brings: Row::L are its lanes,
// Row::max(count, f) is the maximum of 0 and f(k, n), Row::sums(count, f) the two sums that
// f(k, n, a, b) adds to a and b. k is an element, n how many lanes from there on count; the others
// read as 0.
#pragma once

#include "common/math.h"
#include "common/rows.h"

namespace robustcore::attacks {

// One value for all rows, or one a row in the arithmetic type of the matrix.
struct RowParameter {
  PerRow values;  // data null: `value`
  double value;
};

struct Sums {
  double a, b;
};

inline namespace RC_ISA {

template <class T>
RC_HOST_DEVICE double at_row(const RowParameter& p, int64_t row) {
  return p.values.data ? static_cast<double>(robustcore::at_row<T>(p.values, row)) : p.value;
}

template <class T>
using BitsOf = std::conditional_t<std::is_same_v<T, double>, uint64_t, uint32_t>;

// The next value of T towards minus infinity; not of 0.
template <class L>
RC_HOST_DEVICE typename L::Float next_below(typename L::Float v) {
  using Uint = typename L::Uint;
  const Uint bits = L::template as<Uint>(v);
  const Uint sign = bits >> (8 * sizeof(typename L::Real) - 1);
  return L::template as<typename L::Float>(bits + (sign << 1) - 1);
}

// A power of two that brings a magnitude into [1, 4), or a subnormal one to 2^-22 at least.
template <class T>
RC_HOST_DEVICE T unit_scale(T magnitude) {
  using Bits = BitsOf<T>;
  constexpr int shift = std::is_same_v<T, double> ? 52 : 23;
  constexpr Bits largest = std::is_same_v<T, double> ? 2046 : 254;
  const Bits exponent = bit_cast<Bits>(magnitude) >> shift;
  const Bits inverse = exponent < largest ? largest - exponent : 1;
  return bit_cast<T>(inverse << shift);
}

template <class L>
RC_HOST_DEVICE typename L::Float one_where(uint32_t lanes) {
  using T = typename L::Real;
  return L::blend(lanes, L::splat(T(0)), L::splat(T(1)));
}

// The first `count` lanes.
RC_HOST_DEVICE uint32_t first_lanes(int64_t count) {
  return count <= 0 ? 0u : count >= 32 ? ~0u : (uint32_t{1} << count) - 1;
}

// The largest t for which enough(t) holds, by its bits; enough(0) holds, and where it does not, it
// does for nothing larger. No t above `most` is tried.
template <class T, class Enough>
RC_HOST_DEVICE T largest(T most, const Enough& enough) {
  using Bits = BitsOf<T>;
  Bits bits = 0;
  RC_ROLL
  for (int bit = 8 * sizeof(T) - 2; bit >= 0; --bit) {
    const Bits candidate = bits | Bits{1} << bit;
    const T t = bit_cast<T>(candidate);
    if (t <= most && enough(t)) bits = candidate;
  }
  return bit_cast<T>(bits);
}

// How many of value(k, n) are at least t, which is above 0.
template <class Row, class Value>
RC_HOST_DEVICE double count_from(Row& row, int64_t count, typename Row::T t, const Value& value) {
  using L = typename Row::L;
  using T = typename Row::T;
  return row
      .sums(count,
            [&](int64_t k, int n, typename L::Float& a, typename L::Float&) {
              a = a + (value(k, n) >= L::splat(t) ? L::splat(T(1)) : L::splat(T(0)));
            })
      .a;
}

// The `wanted`-th largest of value(k, n), none of them negative; 1 is the maximum. Without a sort:
// bit by bit, and no further than until that many are at least as large.
template <class Row, class Value>
RC_HOST_DEVICE typename Row::T nth_largest(Row& row, int64_t count, int64_t wanted,
                                           const Value& value) {
  using T = typename Row::T;
  bool exact = false;
  return largest(row.max(count, value), [&](T t) {
    if (exact) return false;
    const double found = count_from(row, count, t, value);
    exact = found == static_cast<double>(wanted);
    return found >= static_cast<double>(wanted);
  });
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
