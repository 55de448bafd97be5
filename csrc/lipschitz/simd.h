// The CPU kernels of the family, one table per instruction set; simd.cpp is compiled once for each.
#pragma once

#include "common/strided.h"
#include "lipschitz/lipschitz.h"

namespace robustcore::lipschitz {

// A kernel processes units [begin, end) of its work. Units are fixed by the arguments alone, so the
// result does not depend on how threads share them out.
struct SimdKernels {
  void (*update)(const UpdateArgs&, int64_t begin, int64_t end);
  // Null in the baseline, which has no vectors worth it. Units: groups of images, chunks of groups,
  // output channels, output channels. `scratch` has SeriesPlan::scratch floats, 64-byte aligned.
  void (*series)(const SeriesArgs&, float* scratch, int64_t begin, int64_t end);
  void (*series_backward)(const SeriesBackwardArgs&, float* scratch, int64_t begin, int64_t end);
  void (*series_kernel)(const SeriesKernelArgs&, int64_t begin, int64_t end);
  void (*series_gradient)(const SeriesGradientArgs&, int64_t begin, int64_t end);
  int64_t series_block;  // channels of a column block, by which channels are padded
  void (*skew)(const SkewArgs&, int64_t begin, int64_t end);
  void (*maxmin)(const MaxMinArgs&, int64_t begin, int64_t end);
  void (*swap)(const SwapArgs&, int64_t begin, int64_t end);
  void (*map[3])(const MapArgs&, int64_t begin, int64_t end);  // by Map
  void (*map_backward[3])(const MapBackwardArgs&, int64_t begin, int64_t end);
};

#if defined(__AVX2__)
inline namespace RC_ISA {  // in simd_series.cpp
void series(const SeriesArgs& args, float* scratch, int64_t begin, int64_t end);
void series_backward(const SeriesBackwardArgs& args, float* scratch, int64_t begin, int64_t end);
void series_kernel(const SeriesKernelArgs& args, int64_t begin, int64_t end);
void series_gradient(const SeriesGradientArgs& args, int64_t begin, int64_t end);
}  // namespace RC_ISA
#endif

extern const SimdKernels simd_baseline, simd_avx2, simd_avx512;

constexpr int64_t kUpdateRun = 8192;  // elements of a unit
constexpr int64_t kSkewRun = 16;    // output channels of a unit: reads of the transpose share lines
constexpr int64_t kPairRun = 8192;  // pairs of a unit, a multiple of 8

inline int64_t update_units(const UpdateArgs& a) {
  return ceil_div(a.count, kUpdateRun);
}

inline int64_t skew_units(const SkewArgs& a) {
  return ceil_div(a.channels, kSkewRun);
}

// How a series is cut up: by the arguments and the instruction set alone.
struct SeriesPlan {
  static constexpr int64_t kRows = 8;     // tiles that the matrix product takes at a time
  static constexpr int64_t kMaxRun = 32;  // tiles whose patches lie in cache together
  static constexpr int64_t kPad = 16;     // floats between rows, against aliasing in the cache

  int64_t block, padded, patch;            // channels of a block, of all; elements of a patch
  int64_t tiles_y, tiles_x, tiles;         // of an image
  int64_t staged_height, staged_width;     // of an image with its border of zeros
  int64_t group, groups, run;              // images of a group; groups; tiles of a run
  int64_t chunks;                          // of groups, in the backward pass
  int64_t row, patches, products, staged;  // floats: of a tile's row; of buffers
  // Factors of the kernel's gradient that are multiplied together: where a group is one run, those
  // of all degrees, so that the sums, larger than a cache, are gone through once.
  int64_t pairs = 1;
  int64_t kept;  // floats of the recomputed u, if there are any

  enum Pass { kForward, kBackward, kRecompute };  // the last: backward, with the u again

  SeriesPlan(const SeriesArgs& a, int64_t block, Pass pass) : block(block) {
    padded = ceil_div(a.channels, block) * block;
    patch = (a.tile + 2) * (a.tile + 2);
    tiles_y = ceil_div(a.height, a.tile), tiles_x = ceil_div(a.width, a.tile);
    tiles = tiles_y * tiles_x;
    staged_height = tiles_y * a.tile + 2, staged_width = tiles_x * a.tile + 2;
    // Runs as long as the batch allows without leaving most threads idle.
    int64_t wanted = kMaxRun;
    while (wanted > kRows && a.images * tiles < 4 * wanted) wanted /= 2;
    group = wanted / tiles < 1 ? 1 : wanted / tiles;
    if (group > a.images && a.images > 0) group = a.images;
    groups = ceil_div(a.images, group);
    run = ceil_div(group * tiles, kRows) * kRows;
    if (run > kMaxRun) run = kMaxRun;
    // Their partial sums shall not take much more memory than the batch.
    const int64_t batch = 2 * a.images * a.height * a.width * a.channels;
    chunks = (batch > 1 << 20 ? batch : 1 << 20) / (patch * padded * padded);
    if (chunks < 2) chunks = 2;
    if (chunks > 16) chunks = 16;
    if (chunks > groups) chunks = groups;
    row = padded + kPad;
    patches = patch * run * row;
    products = patch * run * block;
    staged = group * staged_height * staged_width * padded;
    if (pass != kForward && group * tiles <= run) pairs = a.degree;
    kept = pass == kRecompute ? (a.degree - 1) * group * a.height * a.width * a.channels : 0;
  }
  int64_t scratch() const {  // three images, patches of both factors, products
    return 3 * staged + 2 * pairs * patches + products + kept;
  }
};

// A unit is a part of a long row, or several short rows.
struct PairTiling {
  int64_t rows;   // of a unit
  int64_t parts;  // of a row

  explicit PairTiling(const PairShape& s)
      : rows(s.run() < kPairRun ? kPairRun / s.run() : 1), parts(ceil_div(s.run(), kPairRun)) {}
  int64_t units(const PairShape& s) const {
    return ceil_div(s.rows, rows) * parts;
  }

  // Calls body(row, first, last) with the pairs [first, last) of each row in the units.
  template <class Body>
  void for_each(const PairShape& s, int64_t begin, int64_t end, const Body& body) const {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row0 = unit / parts * rows, first = unit % parts * kPairRun;
      const int64_t last = first + kPairRun < s.run() ? first + kPairRun : s.run();
      const int64_t row1 = row0 + rows < s.rows ? row0 + rows : s.rows;
      for (int64_t row = row0; row < row1; ++row) body(row, first, last);
    }
  }
};

}  // namespace robustcore::lipschitz
