// The vectors of x86: AVX2 and AVX-512. What each name means stands in lanes.h, which includes
// this.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace robustcore {
inline namespace RC_ISA {

struct Avx2 {
  using Word = __m256i;
  using Product = __m256i;
  using Float = __m256;
  // GCC and Clang give these types the operators of their lanes.
  typedef int32_t Int __attribute__((vector_size(32)));
  typedef uint32_t Uint __attribute__((vector_size(32)));
  using Real = float;
  static constexpr int kFloats = 8, kVectors = 2, kElements = 16;

  static RC_HOST_DEVICE Word word(uint32_t v) {
    return _mm256_set1_epi64x(v);
  }
  static RC_HOST_DEVICE Product mul_wide(Word a, uint32_t m) {
    return _mm256_mul_epu32(a, _mm256_set1_epi64x(m));
  }
  static RC_HOST_DEVICE Word high(Product p) {
    return _mm256_srli_epi64(p, 32);
  }
  static RC_HOST_DEVICE Word low(Product p) {
    return p;
  }
  static RC_HOST_DEVICE Word xor2(Word a, Word b) {
    return _mm256_xor_si256(a, b);
  }
  static RC_HOST_DEVICE Word xor3(Word a, Word b, Word c) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
  }
  // Lanes in the order that makes `normals` come out in element order: see there.
  static RC_HOST_DEVICE Word counters(uint32_t first) {
    const __m256i order = _mm256_setr_epi32(0, 0, 2, 0, 1, 0, 3, 0);
    return _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(first)), order);
  }

  static RC_HOST_DEVICE Float splat(float v) {
    return _mm256_set1_ps(v);
  }
  static RC_HOST_DEVICE Float fma(Float a, Float b, Float c) {
    return _mm256_fmadd_ps(a, b, c);
  }
  static RC_HOST_DEVICE Float sqrt(Float a) {
    return _mm256_sqrt_ps(a);
  }
  static RC_HOST_DEVICE Float ceil(Float a) {
    return _mm256_ceil_ps(a);
  }
  // AVX2 converts signed integers only: both halves are exact, and the fma rounds their sum once.
  static RC_HOST_DEVICE Float from_uint(Uint v) {
    return fma(from_int(as<Int>(v >> 16)), splat(65536.0f), from_int(as<Int>(v & 0xFFFFu)));
  }
  static RC_HOST_DEVICE Float from_int(Int v) {
    return _mm256_cvtepi32_ps(as<__m256i>(v));
  }
  template <class To, class From>
  static RC_HOST_DEVICE To as(From v) {
    return (To)v;
  }
  static RC_HOST_DEVICE Float load(const float* p) {
    return _mm256_loadu_ps(p);
  }
  static RC_HOST_DEVICE void store(float* p, Float v) {
    _mm256_storeu_ps(p, v);
  }

  static RC_HOST_DEVICE __m256i first_lanes(int n) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
  }
  static RC_HOST_DEVICE Float load_partial(const float* p, int n, float pad = -INFINITY) {
    const __m256i mask = first_lanes(n);
    return _mm256_blendv_ps(splat(pad), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
  }
  static RC_HOST_DEVICE void store_partial(float* p, Float v, int n) {
    _mm256_maskstore_ps(p, first_lanes(n), v);
  }
  static RC_HOST_DEVICE Float max(Float a, Float b) {
    return _mm256_max_ps(a, b);
  }
  static RC_HOST_DEVICE Float min(Float a, Float b) {
    return _mm256_min_ps(a, b);
  }
  static RC_HOST_DEVICE float reduce_max(Float a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
  }
  // Lane j of rows[i] and lane i of rows[j] change places.
  static RC_HOST_DEVICE void transpose(Float (&rows)[kFloats]) {
    const auto pd = [](__m256 v) { return _mm256_castps_pd(v); };
    const auto ps = [](__m256d v) { return _mm256_castpd_ps(v); };
    Float quads[kFloats];  // quads[4 r + k]: columns k and 4 + k of rows 4 r to 4 r + 3
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
      const Float a = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      const Float b = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
      const Float c = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]);
      const Float d = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
      quads[i] = ps(_mm256_unpacklo_pd(pd(a), pd(c)));
      quads[i + 1] = ps(_mm256_unpackhi_pd(pd(a), pd(c)));
      quads[i + 2] = ps(_mm256_unpacklo_pd(pd(b), pd(d)));
      quads[i + 3] = ps(_mm256_unpackhi_pd(pd(b), pd(d)));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
  }
  static RC_HOST_DEVICE uint32_t equal_mask(Float a, Float b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
  }
  static RC_HOST_DEVICE uint32_t nan_mask(Float a) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  static RC_HOST_DEVICE uint32_t less_mask(Float a, Float b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static RC_HOST_DEVICE Float blend(uint32_t mask, Float a, Float b) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
  }

  // A 64-bit lane holds one counter. Words 0 and 2 share a vector of radii, 1 and 3 one of angles;
  // the pair's outputs then interleave to z0 z1 z2 z3 of each counter with one unpack.
  template <class Pair>
  static RC_HOST_DEVICE void normals(const Word (&w)[4], Float (&z)[kVectors], Pair pair) {
    const __m256i r = _mm256_blend_epi32(w[0], _mm256_slli_epi64(w[2], 32), 0xAA);
    const __m256i t = _mm256_blend_epi32(w[1], _mm256_slli_epi64(w[3], 32), 0xAA);
    Float c, s;
    pair(as<Uint>(r), as<Uint>(t), c, s);
    z[0] = _mm256_unpacklo_ps(c, s);
    z[1] = _mm256_unpackhi_ps(c, s);
  }
};

#if defined(__AVX512F__)
struct Avx512 {
  using Word = __m512i;
  using Product = __m512i;
  using Float = __m512;
  typedef int32_t Int __attribute__((vector_size(64)));
  typedef uint32_t Uint __attribute__((vector_size(64)));
  using Real = float;
  static constexpr int kFloats = 16, kVectors = 2, kElements = 32;

  static RC_HOST_DEVICE Word word(uint32_t v) {
    return _mm512_set1_epi64(v);
  }
  static RC_HOST_DEVICE Product mul_wide(Word a, uint32_t m) {
    return _mm512_mul_epu32(a, _mm512_set1_epi64(m));
  }
  static RC_HOST_DEVICE Word high(Product p) {
    return _mm512_srli_epi64(p, 32);
  }
  static RC_HOST_DEVICE Word low(Product p) {
    return p;
  }
  static RC_HOST_DEVICE Word xor2(Word a, Word b) {
    return _mm512_xor_si512(a, b);
  }
  static RC_HOST_DEVICE Word xor3(Word a, Word b, Word c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
  }
  static RC_HOST_DEVICE Word counters(uint32_t first) {
    const __m512i order = _mm512_setr_epi32(0, 0, 4, 0, 1, 0, 5, 0, 2, 0, 6, 0, 3, 0, 7, 0);
    return _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)), order);
  }

  static RC_HOST_DEVICE Float splat(float v) {
    return _mm512_set1_ps(v);
  }
  static RC_HOST_DEVICE Float fma(Float a, Float b, Float c) {
    return _mm512_fmadd_ps(a, b, c);
  }
  static RC_HOST_DEVICE Float sqrt(Float a) {
    return _mm512_sqrt_ps(a);
  }
  static RC_HOST_DEVICE Float ceil(Float a) {
    return _mm512_ceil_ps(a);
  }
  static RC_HOST_DEVICE Float from_uint(Uint v) {
    return _mm512_cvtepu32_ps(as<__m512i>(v));
  }
  static RC_HOST_DEVICE Float from_int(Int v) {
    return _mm512_cvtepi32_ps(as<__m512i>(v));
  }
  template <class To, class From>
  static RC_HOST_DEVICE To as(From v) {
    return (To)v;
  }
  static RC_HOST_DEVICE Float load(const float* p) {
    return _mm512_loadu_ps(p);
  }
  static RC_HOST_DEVICE void store(float* p, Float v) {
    _mm512_storeu_ps(p, v);
  }

  static RC_HOST_DEVICE __mmask16 first_lanes(int n) {
    return static_cast<__mmask16>((uint64_t{1} << n) - 1);
  }
  static RC_HOST_DEVICE Float load_partial(const float* p, int n, float pad = -INFINITY) {
    return _mm512_mask_loadu_ps(splat(pad), first_lanes(n), p);
  }
  static RC_HOST_DEVICE void store_partial(float* p, Float v, int n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), v);
  }
  static RC_HOST_DEVICE Float max(Float a, Float b) {
    return _mm512_max_ps(a, b);
  }
  static RC_HOST_DEVICE Float min(Float a, Float b) {
    return _mm512_min_ps(a, b);
  }
  static RC_HOST_DEVICE float reduce_max(Float a) {
    return _mm512_reduce_max_ps(a);
  }
  static RC_HOST_DEVICE void transpose(Float (&rows)[kFloats]) {  // as in Avx2
    const auto pd = [](__m512 v) { return _mm512_castps_pd(v); };
    const auto ps = [](__m512d v) { return _mm512_castpd_ps(v); };
    Float quads[kFloats];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      const Float a = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
      const Float b = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
      const Float c = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]);
      const Float d = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
      quads[i] = ps(_mm512_unpacklo_pd(pd(a), pd(c)));
      quads[i + 1] = ps(_mm512_unpackhi_pd(pd(a), pd(c)));
      quads[i + 2] = ps(_mm512_unpacklo_pd(pd(b), pd(d)));
      quads[i + 3] = ps(_mm512_unpackhi_pd(pd(b), pd(d)));
    }
#pragma GCC unroll 16
    for (int k = 0; k < 4; ++k) {
      const Float a = _mm512_shuffle_f32x4(quads[k], quads[k + 4], 0x44);
      const Float b = _mm512_shuffle_f32x4(quads[k], quads[k + 4], 0xEE);
      const Float c = _mm512_shuffle_f32x4(quads[k + 8], quads[k + 12], 0x44);
      const Float d = _mm512_shuffle_f32x4(quads[k + 8], quads[k + 12], 0xEE);
      rows[k] = _mm512_shuffle_f32x4(a, c, 0x88);
      rows[k + 4] = _mm512_shuffle_f32x4(a, c, 0xDD);
      rows[k + 8] = _mm512_shuffle_f32x4(b, d, 0x88);
      rows[k + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
    }
  }
  static RC_HOST_DEVICE uint32_t equal_mask(Float a, Float b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
  }
  static RC_HOST_DEVICE uint32_t nan_mask(Float a) {
    return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  }
  static RC_HOST_DEVICE uint32_t less_mask(Float a, Float b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
  }
  static RC_HOST_DEVICE Float blend(uint32_t mask, Float a, Float b) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(mask), a, b);
  }

  // table[index mod 32] of each lane.
  static RC_HOST_DEVICE Float lookup(const float (&table)[32], Uint index) {
    const Float low = _mm512_loadu_ps(table), high = _mm512_loadu_ps(table + 16);
    return _mm512_permutex2var_ps(low, as<__m512i>(index), high);
  }

  template <class Pair>  // as in Avx2
  static RC_HOST_DEVICE void normals(const Word (&w)[4], Float (&z)[kVectors], Pair pair) {
    const __m512i r = _mm512_mask_blend_epi32(0xAAAA, w[0], _mm512_slli_epi64(w[2], 32));
    const __m512i t = _mm512_mask_blend_epi32(0xAAAA, w[1], _mm512_slli_epi64(w[3], 32));
    Float c, s;
    pair(as<Uint>(r), as<Uint>(t), c, s);
    z[0] = _mm512_unpacklo_ps(c, s);
    z[1] = _mm512_unpackhi_ps(c, s);
  }
};
#endif

}  // namespace RC_ISA
}  // namespace robustcore
