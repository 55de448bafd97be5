// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011), written once for a scalar, a CUDA thread and a SIMD vector.
//
// A `Lanes` type supplies `Word` (one 32-bit counter word a lane) and `Product` (its 64-bit
// product). In the SIMD types a Word sits in a 64-bit lane whose upper half may hold anything: the
// widening multiply reads the low half only, so no lane is ever masked or repacked between rounds.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace robustcore {
inline namespace RC_ISA {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

RC_HOST_DEVICE uint32_t mul_hi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// The ten round keys of one seed.
struct PhiloxKey {
  uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
};

RC_HOST_DEVICE PhiloxKey philox_key(uint64_t seed) {
  PhiloxKey key{};
  for (uint32_t r = 0; r < kPhiloxRounds; ++r) {
    key.k0[r] = static_cast<uint32_t>(seed) + r * kPhiloxW0;
    key.k1[r] = static_cast<uint32_t>(seed >> 32) + r * kPhiloxW1;
  }
  return key;
}

template <class Lanes>
RC_HOST_DEVICE void philox_round(typename Lanes::Word (&c)[4], typename Lanes::Word k0,
                                 typename Lanes::Word k1) {
  const auto p0 = Lanes::mul_wide(c[0], kPhiloxM0);
  const auto p1 = Lanes::mul_wide(c[2], kPhiloxM1);
  c[0] = Lanes::xor3(Lanes::high(p1), c[1], k0);
  c[1] = Lanes::low(p1);
  c[2] = Lanes::xor3(Lanes::high(p0), c[3], k1);
  c[3] = Lanes::low(p0);
}

// The general form: any counter, all ten rounds. The streams use `philox_row` below.
RC_HOST_DEVICE void philox4x32(const uint32_t (&counter)[4], uint64_t seed, uint32_t (&out)[4]) {
  uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  const PhiloxKey key = philox_key(seed);
  for (int r = 0; r < kPhiloxRounds; ++r) {
    const uint32_t h0 = mul_hi(kPhiloxM0, c0), l0 = kPhiloxM0 * c0;
    const uint32_t h1 = mul_hi(kPhiloxM1, c2), l1 = kPhiloxM1 * c2;
    c0 = h1 ^ c1 ^ key.k0[r], c1 = l1, c2 = h0 ^ c3 ^ key.k1[r], c3 = l0;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// In a row of a stream (one image, one sample) only counter word 0 varies, so half of the first
// three rounds is the same for every element. A PhiloxRow holds that half.
struct PhiloxRow {
  uint32_t a, b, c, d;
};

RC_HOST_DEVICE PhiloxRow philox_row(const PhiloxKey& key, uint32_t c1, uint32_t c2, uint32_t c3) {
  const uint32_t x0 = mul_hi(kPhiloxM1, c2) ^ c1 ^ key.k0[0];  // word 0 after round 1
  const uint32_t x1 = kPhiloxM1 * c2;                          // word 1 after round 1
  return {c3 ^ key.k1[0], x1 ^ key.k0[1], mul_hi(kPhiloxM0, x0) ^ key.k1[1],
          (kPhiloxM0 * x0) ^ key.k1[2]};
}

// The half that depends on counter word 0 alone, the same for every row: M0 * c0.
template <class Lanes>
struct PhiloxColumn {
  typename Lanes::Word high, low;
};

template <class Lanes>
RC_HOST_DEVICE PhiloxColumn<Lanes> philox_column(typename Lanes::Word c0) {
  const auto p = Lanes::mul_wide(c0, kPhiloxM0);
  return {Lanes::high(p), Lanes::low(p)};
}

// Ten rounds from a row and a column. `keys` holds each round key as a Word.
template <class Lanes>
RC_HOST_DEVICE void philox_from_row(const PhiloxRow& row, const PhiloxColumn<Lanes>& column,
                                    const typename Lanes::Word (&keys)[kPhiloxRounds][2],
                                    typename Lanes::Word (&out)[4]) {
  const auto p1 = Lanes::mul_wide(Lanes::xor2(column.high, Lanes::word(row.a)), kPhiloxM1);
  const auto y0 = Lanes::xor2(Lanes::high(p1), Lanes::word(row.b));
  const auto y2 = Lanes::xor2(column.low, Lanes::word(row.c));
  const auto q0 = Lanes::mul_wide(y0, kPhiloxM0);
  const auto q1 = Lanes::mul_wide(y2, kPhiloxM1);
  out[0] = Lanes::xor3(Lanes::high(q1), Lanes::low(p1), keys[2][0]);
  out[1] = Lanes::low(q1);
  out[2] = Lanes::xor2(Lanes::high(q0), Lanes::word(row.d));
  out[3] = Lanes::low(q0);
  RC_UNROLL
  for (int r = 3; r < kPhiloxRounds; ++r) philox_round<Lanes>(out, keys[r][0], keys[r][1]);
}

}  // namespace RC_ISA
}  // namespace robustcore
