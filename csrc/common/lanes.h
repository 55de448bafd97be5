// The vector types that kernels are written in. Each offers the same names:
//   Word     32-bit integers for Philox (see philox.h)
//   Float    float lanes, Int / Uint its integer twins; kFloats lanes in one Float
//   kVectors Floats hold the kElements = 4 * (Philox counters) normals of one step
// A `Scalar` step is one counter and four floats: it is the baseline and what a CUDA thread runs.
// Bits must agree everywhere, so the only float operations are + - *, fma, sqrt, ceil and int ->
// float, each rounded once by IEEE 754.
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>
#include <type_traits>

#include "common/macros.h"

namespace robustcore {
inline namespace RC_ISA {

template <class To, class From>
RC_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

struct Scalar {
  using Word = uint32_t;
  using Product = uint64_t;
  using Float = float;
  using Int = int32_t;
  using Uint = uint32_t;
  using Real = float;  // what one lane of a Float holds
  static constexpr int kFloats = 1, kVectors = 4, kElements = 4;

  static RC_HOST_DEVICE Word word(uint32_t v) {
    return v;
  }
  static RC_HOST_DEVICE Product mul_wide(Word a, uint32_t m) {
    return static_cast<uint64_t>(a) * m;
  }
  static RC_HOST_DEVICE Word high(Product p) {
    return static_cast<Word>(p >> 32);
  }
  static RC_HOST_DEVICE Word low(Product p) {
    return static_cast<Word>(p);
  }
  static RC_HOST_DEVICE Word xor2(Word a, Word b) {
    return a ^ b;
  }
  static RC_HOST_DEVICE Word xor3(Word a, Word b, Word c) {
    return a ^ b ^ c;
  }
  static RC_HOST_DEVICE Word counters(uint32_t first) {
    return first;
  }

  static RC_HOST_DEVICE Float splat(float v) {
    return v;
  }
  static RC_HOST_DEVICE Float fma(Float a, Float b, Float c) {
    return ::fmaf(a, b, c);
  }
  static RC_HOST_DEVICE Float sqrt(Float a) {
    return ::sqrtf(a);
  }
  static RC_HOST_DEVICE Float ceil(Float a) {
    return ::ceilf(a);
  }
  static RC_HOST_DEVICE Float from_uint(Uint v) {
    return static_cast<float>(v);
  }
  static RC_HOST_DEVICE Float from_int(Int v) {
    return static_cast<float>(v);
  }
  template <class To, class From>
  static RC_HOST_DEVICE To as(From v) {
    return bit_cast<To>(v);
  }
  static RC_HOST_DEVICE Float load(const float* p) {
    return *p;
  }
  static RC_HOST_DEVICE void store(float* p, Float v) {
    *p = v;
  }

  // Ends of rows and searches: a load of the first n lanes (at most all) that pads the others, its
  // store, maxima and minima that return b where either is a NaN, and comparisons as bit masks.
  static RC_HOST_DEVICE Float load_partial(const float* p, int n, float pad = -INFINITY) {
    return n > 0 ? *p : pad;
  }
  static RC_HOST_DEVICE void store_partial(float* p, Float v, int n) {
    if (n > 0) *p = v;
  }
  static RC_HOST_DEVICE Float max(Float a, Float b) {
    return a > b ? a : b;
  }
  static RC_HOST_DEVICE Float min(Float a, Float b) {
    return a < b ? a : b;
  }
  static RC_HOST_DEVICE float reduce_max(Float a) {
    return a;
  }
  static RC_HOST_DEVICE uint32_t equal_mask(Float a, Float b) {
    return a == b;
  }
  static RC_HOST_DEVICE uint32_t nan_mask(Float a) {
    return a != a;
  }
  static RC_HOST_DEVICE uint32_t less_mask(Float a, Float b) {
    return a < b;
  }
  // Lane i is b's where bit i of the mask is set, else a's; higher bits are ignored.
  static RC_HOST_DEVICE Float blend(uint32_t mask, Float a, Float b) {
    return mask & 1 ? b : a;
  }

  // Words 0 and 2 are radii, 1 and 3 angles: two Box-Muller pairs of one counter.
  template <class Pair>
  static RC_HOST_DEVICE void normals(const Word (&w)[4], Float (&z)[kVectors], Pair pair) {
    pair(w[0], w[1], z[0], z[1]);
    pair(w[2], w[3], z[2], z[3]);
  }
};

// One float64 lane, for kernels of floats that also serve float64; not for Philox.
struct ScalarDouble {
  using Float = double;
  using Uint = uint64_t;
  using Real = double;
  static constexpr int kFloats = 1;

  static RC_HOST_DEVICE Float splat(double v) {
    return v;
  }
  static RC_HOST_DEVICE Float fma(Float a, Float b, Float c) {
    return ::fma(a, b, c);
  }
  static RC_HOST_DEVICE Float sqrt(Float a) {
    return ::sqrt(a);
  }
  static RC_HOST_DEVICE Float ceil(Float a) {
    return ::ceil(a);
  }
  template <class To, class From>
  static RC_HOST_DEVICE To as(From v) {
    return bit_cast<To>(v);
  }
  static RC_HOST_DEVICE Float load(const double* p) {
    return *p;
  }
  static RC_HOST_DEVICE void store(double* p, Float v) {
    *p = v;
  }
  static RC_HOST_DEVICE Float load_partial(const double* p, int n, double pad = -INFINITY) {
    return n > 0 ? *p : pad;
  }
  static RC_HOST_DEVICE void store_partial(double* p, Float v, int n) {
    if (n > 0) *p = v;
  }
  static RC_HOST_DEVICE Float max(Float a, Float b) {
    return a > b ? a : b;
  }
  static RC_HOST_DEVICE Float min(Float a, Float b) {
    return a < b ? a : b;
  }
  static RC_HOST_DEVICE double reduce_max(Float a) {
    return a;
  }
  static RC_HOST_DEVICE Float blend(uint32_t mask, Float a, Float b) {
    return mask & 1 ? b : a;
  }
};

}  // namespace RC_ISA
}  // namespace robustcore

#if !defined(__CUDACC__) && defined(__AVX2__)
#include "common/lanes_x86.h"
#endif

namespace robustcore {
inline namespace RC_ISA {

// The widest lanes of this translation unit.
#if !defined(__CUDACC__) && defined(__AVX512F__)
using Lanes = Avx512;
#elif !defined(__CUDACC__) && defined(__AVX2__)
using Lanes = Avx2;
#else
using Lanes = Scalar;
#endif

// The lanes of an arithmetic type: as wide as there are, and one.
template <class T>
using LanesOf = std::conditional_t<std::is_same_v<T, double>, ScalarDouble, Lanes>;
template <class T>
using OneLane = std::conditional_t<std::is_same_v<T, double>, ScalarDouble, Scalar>;

}  // namespace RC_ISA
}  // namespace robustcore
