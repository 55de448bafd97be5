// Elements narrower than what they are computed in.
#pragma once

#include "common/dtype.h"

namespace robustcore::attacks {
inline namespace RC_ISA {

// v as an element: a narrow type is rounded towards x0, which is one of its values, so that no
// rounding leaves the ball.
template <class E, class T>
RC_HOST_DEVICE E rounded_towards(T v, T x0) {
  E e = convert<E>(v);
  if constexpr (sizeof(E) < sizeof(float)) {
    const float r = to_float(e);
    const bool above = r > v && v >= x0, below = r < v && v <= x0;
    if (above || below) {
      const bool zero = (e.bits & 0x7FFF) == 0, negative = e.bits >> 15;
      e.bits = zero ? (above ? 0x8001 : 1) : negative == above ? e.bits + 1 : e.bits - 1;
    }
  }
  return e;
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
