// Tiles of a Winograd convolution on vectors of channels: their transforms and matrix products, on
// the instruction sets that have vectors worth it.
#pragma once

#include <type_traits>

#include "common/image_rows.h"
#include "common/winograd.h"
#include "common/winograd_plan.h"

#if !defined(__CUDACC__) && defined(__AVX2__)
namespace robustcore {
inline namespace RC_ISA {

constexpr int kTileRows = WinogradPlan::kRows;
constexpr int kTileBlock = 2 * Lanes::kFloats;  // columns that the matrix products make at a time
// Half the rows at a time where there are 16 registers only.
constexpr int kRowsAtOnce = Lanes::kFloats == 16 ? kTileRows : kTileRows / 2;

// Calls body with the tile, 2 or 4, as a constant.
template <class Body>
void dispatch_tile(int64_t tile, const Body& body) {
  if (tile == 2) {
    body(std::integral_constant<int, 2>{});
  } else {
    body(std::integral_constant<int, 4>{});
  }
}

// out[r, j] = sum over i of a[r, i] b[i, j], kTileBlock columns; rows of a and out lie `a_row` and
// `out_row` apart. A function of its own: inlined among a caller's variables, the pointers to the
// rows leave their registers, which cost a quarter of the speed.
[[gnu::noinline]] inline void multiply_tiles(const float* a, int64_t a_row, const float* b,
                                             int64_t inner, float* out, int64_t out_row) {
  constexpr int L = Lanes::kFloats;
  for (int r0 = 0; r0 < kTileRows; r0 += kRowsAtOnce, a += kRowsAtOnce * a_row) {
    Lanes::Float sum[kRowsAtOnce][2];
#pragma GCC unroll 8
    for (int r = 0; r < kRowsAtOnce; ++r) sum[r][0] = sum[r][1] = Lanes::splat(0.0f);
    for (int64_t i = 0; i < inner; ++i) {
      const Lanes::Float b0 = Lanes::load(b + i * kTileBlock);
      const Lanes::Float b1 = Lanes::load(b + i * kTileBlock + L);
#pragma GCC unroll 8
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const Lanes::Float v = Lanes::splat(a[r * a_row + i]);
        sum[r][0] = Lanes::fma(v, b0, sum[r][0]);
        sum[r][1] = Lanes::fma(v, b1, sum[r][1]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRowsAtOnce; ++r, out += out_row) {
      Lanes::store(out, sum[r][0]);
      Lanes::store(out + L, sum[r][1]);
    }
  }
}

// out[i, j] += sum over r < rows of a[r, i] b[r, j], and over `pairs` such a and b, `next` apart;
// kTileRows rows, kTileBlock columns of out.
[[gnu::noinline]] inline void multiply_tiles_transposed(const float* a, int64_t a_row,
                                                        const float* b, int64_t b_row, int64_t rows,
                                                        int64_t pairs, int64_t next, float* out,
                                                        int64_t out_row) {
  constexpr int L = Lanes::kFloats;
  for (int i0 = 0; i0 < kTileRows;
       i0 += kRowsAtOnce, a += kRowsAtOnce, out += kRowsAtOnce * out_row) {
    Lanes::Float sum[kRowsAtOnce][2];
#pragma GCC unroll 8
    for (int i = 0; i < kRowsAtOnce; ++i) {
      sum[i][0] = Lanes::load(out + i * out_row), sum[i][1] = Lanes::load(out + i * out_row + L);
    }
    for (int64_t pair = 0; pair < pairs; ++pair) {
      const float *p = a + pair * next, *q = b + pair * next;
      for (int64_t r = 0; r < rows; ++r, p += a_row, q += b_row) {
        const Lanes::Float b0 = Lanes::load(q), b1 = Lanes::load(q + L);
#pragma GCC unroll 8
        for (int i = 0; i < kRowsAtOnce; ++i) {
          const Lanes::Float v = Lanes::splat(p[i]);
          sum[i][0] = Lanes::fma(v, b0, sum[i][0]);
          sum[i][1] = Lanes::fma(v, b1, sum[i][1]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRowsAtOnce; ++i) {
      Lanes::store(out + i * out_row, sum[i][0]);
      Lanes::store(out + i * out_row + L, sum[i][1]);
    }
  }
}

// out[(i * A + j) * next] = map(map(load)^T)^T[i][j]: a map of N values to A, along columns and
// rows.
template <int N, int A, class Map, class Load>
inline void transform_square(const Map& map, const Load& load, float* out, int64_t next) {
  Lanes::Float half[A][N];
#pragma GCC unroll 6
  for (int j = 0; j < N; ++j) {
    Lanes::Float column[N], mapped[A];
#pragma GCC unroll 6
    for (int i = 0; i < N; ++i) column[i] = load(i, j);
    map(column, mapped);
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) half[i][j] = mapped[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < A; ++i) {
    Lanes::Float mapped[A];
    map(half[i], mapped);
#pragma GCC unroll 6
    for (int j = 0; j < A; ++j) Lanes::store(out + (i * A + j) * next, mapped[j]);
  }
}

// out[f * next]: the transformed patch of the inputs load(y, x), 0 <= y, x < M + 2.
template <int M, class Load>
inline void transform_patch(const Load& load, float* out, int64_t next) {
  transform_square<M + 2, M + 2>([](const auto& d, auto& v) { Winograd<M>::patch(d, v); }, load,
                                 out, next);
}

// out[f * next]: the adjoint of the result's transform, on the results load(y, x), 0 <= y, x < M.
template <int M, class Load>
inline void transform_result_adjoint(const Load& load, float* out, int64_t next) {
  transform_square<M, M + 2>([](const auto& y, auto& m) { Winograd<M>::result_adjoint(y, m); },
                             load, out, next);
}

// store(y, results): the first `rows` rows of results of the products at products[f * kTileBlock].
template <int M, class Store>
inline void transform_result(const float* products, int rows, const Store& store) {
  constexpr int A = M + 2;
  Lanes::Float half[M][A];
#pragma GCC unroll 6
  for (int j = 0; j < A; ++j) {
    Lanes::Float column[A], row[M];
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) column[i] = Lanes::load(products + (i * A + j) * kTileBlock);
    Winograd<M>::result(column, row);
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) half[i][j] = row[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) {
    if (i >= rows) return;
    Lanes::Float row[M];
    Winograd<M>::result(half[i], row);
    store(i, row);
  }
}

// out[f * next]: the transformed filter of 3 x 3 taps.
template <int M>
inline void transform_filter(const Lanes::Float (&taps)[9], float* out, int64_t next) {
  transform_square<3, M + 2>([](const auto& g, auto& u) { Winograd<M>::filter(g, u); },
                             [&](int y, int x) { return taps[3 * y + x]; }, out, next);
}

// taps[3 y + x]: the adjoint of the filter's transform, on the elements load(f).
template <int M, class Load>
inline void transform_filter_adjoint(const Load& load, float* taps, int64_t next) {
  transform_square<M + 2, 3>([](const auto& u, auto& g) { Winograd<M>::filter_adjoint(u, g); },
                             [&](int y, int x) { return load(y * (M + 2) + x); }, taps, next);
}

}  // namespace RC_ISA
}  // namespace robustcore
#endif
