#include <algorithm>

#include "common/products_simd.h"
#include "density/product.h"

#if defined(__AVX2__)
namespace robustcore::density {
inline namespace RC_ISA {
namespace {

// to[s, i] = from[s, i] of `count` columns i, and 0 up to kWidth.
template <int kWidth>
void pack(const float* from, int64_t step, int64_t column, int64_t steps, int64_t count,
          float* to) {
  if (count < kWidth) std::fill(to, to + steps * kWidth, 0.0f);
  if (column == 1) {
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t i = 0; i < count; ++i) to[s * kWidth + i] = from[s * step + i];
    }
    return;
  }
  // A few steps of all columns: what is read lies side by side, what is written stays in cache.
  constexpr int64_t kRun = 16;
  for (int64_t s0 = 0; s0 < steps; s0 += kRun) {
    const int64_t s1 = std::min(s0 + kRun, steps);
    for (int64_t i = 0; i < count; ++i) {
      const float* p = from + i * column;
      for (int64_t s = s0; s < s1; ++s) to[s * kWidth + i] = p[s * step];
    }
  }
}

// out[kRows, kPanel] = (out or 0) + a b, both packed, in strips as wide as registers have room for.
void multiply_tile(const float* a, const float* b, int64_t steps, float* out, int64_t out_row,
                   bool add) {
  using Args = ProductArgs;
  constexpr int w = Lanes::kFloats, kAtOnce = w == 16 ? 12 : 6;
  for (int j = 0; j < Args::kPanel; j += 2 * w) {
    for (int i = 0; i < Args::kRows; i += kAtOnce) {
      multiply_block<Lanes, kAtOnce, 2, true>({a + i, 1, Args::kRows}, b + j, Args::kPanel, steps,
                                              out + i * out_row + j, out_row, add, w);
    }
  }
}

// The same where the tile ends before `rows` and `columns` do.
void multiply_part(const float* a, const float* b, int64_t steps, float* out, int64_t out_row,
                   bool add, int64_t rows, int64_t columns, float* tile) {
  constexpr int64_t n = ProductArgs::kPanel;
  for (int64_t i = 0; add && i < rows; ++i) {
    std::copy_n(out + i * out_row, columns, tile + i * n);
  }
  multiply_tile(a, b, steps, tile, n, add);
  for (int64_t i = 0; i < rows; ++i) std::copy_n(tile + i * n, columns, out + i * out_row);
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(pack_panels)(const ProductArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t n = ProductArgs::kPanel;
  for (int64_t p = begin; p < end; ++p) {
    pack<n>(args.b + p * n * args.b_column, args.b_step, args.b_column, args.steps,
            std::min(n, args.columns - p * n), args.packed + p * n * args.steps);
  }
}

void RC_VARIANT(multiply_packed)(const ProductArgs& args, float* scratch, int64_t begin,
                                 int64_t end) {
  constexpr int64_t kRows = ProductArgs::kRows, n = ProductArgs::kPanel;
  float* const tile = scratch + ProductArgs::kBlock * ProductArgs::kSteps * kRows;
  for (int64_t first = begin; first < end; first += ProductArgs::kBlock) {
    const int64_t last = std::min(first + ProductArgs::kBlock, end);
    // Once at least: a sum of nothing is 0.
    for (int64_t s = 0; s < std::max<int64_t>(args.steps, 1); s += ProductArgs::kSteps) {
      const int64_t steps = std::min(ProductArgs::kSteps, args.steps - s);
      const bool add = args.add || s > 0;
      for (int64_t u = first; u < last; ++u) {
        pack<kRows>(args.a + u * kRows * args.a_row + s * args.a_step, args.a_step, args.a_row,
                    steps, std::min(kRows, args.rows - u * kRows),
                    scratch + (u - first) * kRows * steps);
      }
      for (int64_t p = 0; p < args.panels(); ++p) {
        const float* b = args.packed + (p * args.steps + s) * n;
        const int64_t columns = std::min(n, args.columns - p * n);
        for (int64_t u = first; u < last; ++u) {
          const float* a = scratch + (u - first) * kRows * steps;
          const int64_t rows = std::min(kRows, args.rows - u * kRows);
          float* out = args.out + u * kRows * args.out_row + p * n;
          if (rows == kRows && columns == n) {
            multiply_tile(a, b, steps, out, args.out_row, add);
          } else {
            multiply_part(a, b, steps, out, args.out_row, add, rows, columns, tile);
          }
        }
      }
    }
  }
}

}  // namespace robustcore::density
#endif
