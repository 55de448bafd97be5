// What the family's CPU kernels share: vectors over a run of elements, and sums in the one order.
#pragma once

#include "density/density.h"

namespace robustcore::density {
inline namespace RC_ISA {
namespace {

template <class L>
constexpr int kWays = kSums / L::kFloats;  // vectors that hold the accumulators

template <class T>
using LanesOf = std::conditional_t<sizeof(T) == sizeof(double), ScalarDouble, Lanes>;
template <class T>
using OneLane = std::conditional_t<sizeof(T) == sizeof(double), ScalarDouble, Scalar>;

// Calls step(i, n, way): n lanes from element i on, of accumulator vector `way`; n is below
// L::kFloats only at the end.
template <class L, class Step>
RC_HOST_DEVICE void for_lanes(int64_t count, const Step& step) {
  constexpr int w = L::kFloats;
  const int64_t whole = count / kSums * kSums;
  for (int64_t i = 0; i < whole; i += kSums) {
#pragma GCC unroll 4
    for (int way = 0; way < kWays<L>; ++way) step(i + way * w, w, way);
  }
  // The ways are written out here too, or the accumulators would live in memory.
#pragma GCC unroll 4
  for (int way = 0; way < kWays<L>; ++way) {
    const int64_t i = whole + way * w;
    if (i < count) step(i, static_cast<int>(count - i < w ? count - i : w), way);
  }
}

template <class L>
RC_HOST_DEVICE typename L::Float load(const typename L::Real* p, int n, typename L::Real pad) {
  return n == L::kFloats ? L::load(p) : L::load_partial(p, n, pad);
}

template <class L>
RC_HOST_DEVICE void store(typename L::Real* p, typename L::Float v, int n) {
  if (n == L::kFloats) {
    L::store(p, v);
  } else {
    L::store_partial(p, v, n);
  }
}

template <class T>
RC_HOST_DEVICE T tree(T (&a)[kSums]) {
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
}

// The accumulators of a segment, added as the tree.
template <class L>
RC_HOST_DEVICE typename L::Real tree(const typename L::Float (&sums)[kWays<L>]) {
  typename L::Real a[kSums];
  for (int way = 0; way < kWays<L>; ++way) L::store(a + way * L::kFloats, sums[way]);
  return tree(a);
}

template <class Body>
void with_arithmetic(DType dtype, const Body& body) {
  if (dtype == DType::kFloat64) {
    body(double{});
  } else {
    body(float{});
  }
}

}  // namespace
}  // namespace RC_ISA
}  // namespace robustcore::density
