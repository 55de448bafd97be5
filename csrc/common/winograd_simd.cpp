// What all convolutions by Winograd's minimal filtering have in common before and after their
// images: the packed filter, and the filter's gradient out of its factors.
#include "common/variants.h"
#include "common/winograd_group.h"

#if defined(__AVX2__)
namespace robustcore {
inline namespace RC_ISA {
namespace {

using Float = Lanes::Float;
constexpr int L = Lanes::kFloats;

// taps[t]: tap t of L filters `next` apart, zeros for those beyond `count`.
void load_taps(const float* filters, int64_t next, int64_t count, Float (&taps)[9]) {
  Float v[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    v[i] = i < count ? load_first(filters + i * next, 9) : Lanes::splat(0.0f);
  }
  Lanes::transpose(v);
#pragma GCC unroll 9
  for (int t = 0; t < 9 && t < L; ++t) taps[t] = v[t];
  if constexpr (L < 9) {
    // Lane by lane: a load of what single stores have just written would wait for them.
#pragma GCC unroll 8
    for (int i = 0; i < L; ++i) taps[8][i] = i < count ? filters[i * next + 8] : 0.0f;
  }
}

// A block of output channels, by way of a buffer: the elements of a patch lie so far apart, often
// by powers of two, that storing each vector where it belongs would push the last ones out of the
// cache.
template <int M>
void pack_block(const PackFilterArgs& args, int64_t block) {
  constexpr int kPatch = (M + 2) * (M + 2), kInputs = 4;
  // Where the taps of one (input, output) lie, outputs in the lanes.
  const int64_t by_out = args.transposed ? 9 : args.in * 9;
  const int64_t by_in = args.transposed ? args.out * 9 : 9;
  const int64_t o0 = block * kTileBlock, next = args.padded_in * kTileBlock;
  float* out = args.packed + block * kPatch * next;
  alignas(64) float buffer[kPatch][kInputs * kTileBlock];
  for (int64_t i0 = 0; i0 < args.padded_in; i0 += kInputs, out += kInputs * kTileBlock) {
    for (int j = 0; j < kInputs * kTileBlock; j += L) {
      const int64_t i = i0 + j / kTileBlock, o = o0 + j % kTileBlock;
      Float taps[9];
      load_taps(args.filter + o * by_out + i * by_in, by_out,
                i < args.in ? std::min<int64_t>(args.out - o, L) : 0, taps);
      if (args.transposed) std::reverse(taps, taps + 9);
      transform_filter<M>(taps, buffer[0] + j, kInputs * kTileBlock);
    }
    for (int f = 0; f < kPatch; ++f) memcpy(out + f * next, buffer[f], sizeof(buffer[f]));
  }
}

// Lanes c of grad_filter[o, c, 3, 3] from `i` on, from the sums load(f).
template <int M, class Load>
void store_gradient(const FilterGradientArgs& args, int64_t o, int64_t i, const Load& load) {
  const int64_t channels = args.plan.shape.in;
  float taps[9][L];
  transform_filter_adjoint<M>(load, taps[0], L);
  if (args.flipped) std::reverse(taps, taps + 9);
  float* out = args.grad_filter + (o * channels + i) * 9;
  for (int64_t c = 0; c < L && i + c < channels; ++c) {
    for (int tap = 0; tap < 9; ++tap) *out++ = taps[tap][c];
  }
}

// Row o of the gradient, of the chunks' sums.
template <int M>
void sum_chunks(const FilterGradientArgs& args, int64_t o) {
  const WinogradGradientPlan& plan = args.plan;
  for (int64_t i = 0; i < plan.shape.in; i += L) {
    store_gradient<M>(args, o, i, [&](int f) {
      Float sum = Lanes::splat(0.0f);
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        const float* sums = args.work + chunk * plan.sums();
        sum += Lanes::load(sums + (f * plan.out + o) * plan.in + i);
      }
      return sum;
    });
  }
}

// sums[f, kPanel, kTileBlock] += the products of the factors of rows [o0, o1), columns from i0 on.
void multiply_factors(const FilterGradientArgs& args, int64_t o0, int64_t o1, int64_t i0,
                      float* sums) {
  const WinogradGradientPlan& plan = args.plan;
  const int64_t out_next = plan.run * plan.out_row, in_next = plan.run * plan.in_row;
  for (int64_t f = 0; f < plan.patch; ++f, sums += plan.kPanel * kTileBlock) {
    const float* factors = args.work;
    for (int64_t g = 0; g < plan.groups; ++g) {
      int64_t tiles = plan.images_of(g) * plan.tiles;
      for (int64_t run = 0; run < plan.runs; ++run, tiles -= plan.run) {
        const float* a = factors + f * out_next;
        const float* b = factors + plan.patch * out_next + f * in_next + i0;
        const int64_t rows = std::min(tiles, plan.run);
        for (int64_t o = o0; o < o1; o += kTileRows) {
          multiply_tiles_transposed(a + o, plan.out_row, b, plan.in_row, rows, plan.pairs,
                                    plan.pair(), sums + (o - o0) * kTileBlock, kTileBlock);
        }
        factors += plan.pairs * plan.pair();
      }
    }
  }
}

// A panel of rows, a block of columns.
template <int M>
void multiply_panel(const FilterGradientArgs& args, int64_t unit, float* sums) {
  const WinogradGradientPlan& plan = args.plan;
  const int64_t blocks = plan.in / kTileBlock;
  const int64_t o0 = unit / blocks * plan.kPanel, o1 = std::min(o0 + plan.kPanel, plan.out);
  const int64_t i0 = unit % blocks * kTileBlock;
  memset(sums, 0, plan.second_scratch() * sizeof(float));
  multiply_factors(args, o0, o1, i0, sums);
  for (int64_t o = o0; o < std::min(o1, plan.shape.out); ++o) {
    for (int half = 0; half < kTileBlock && i0 + half < plan.shape.in; half += L) {
      store_gradient<M>(args, o, i0 + half, [&](int f) {
        return Lanes::load(sums + (f * plan.kPanel + o - o0) * kTileBlock + half);
      });
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(pack_filter)(const PackFilterArgs& args, int64_t begin, int64_t end) {
  dispatch_tile(args.tile, [&](auto tile) {
    for (int64_t block = begin; block < end; ++block) pack_block<tile>(args, block);
  });
}

void RC_VARIANT(sum_filter_gradient)(const FilterGradientArgs& args, float* scratch, int64_t begin,
                                     int64_t end) {
  dispatch_tile(args.plan.shape.tile, [&](auto tile) {
    for (int64_t unit = begin; unit < end; ++unit) {
      if (args.plan.factors_kept) {
        multiply_panel<tile>(args, unit, scratch);
      } else if (unit < args.plan.shape.out) {
        sum_chunks<tile>(args, unit);
      }
    }
  });
}

}  // namespace robustcore
#endif
