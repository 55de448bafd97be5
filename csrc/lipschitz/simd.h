// The CPU kernels of the family, one table per instruction set; simd.cpp is compiled once for each.
#pragma once

#include "common/strided.h"
#include "lipschitz/lipschitz.h"

namespace robustcore::lipschitz {

// A kernel processes units [begin, end) of its work. Units are fixed by the arguments alone, so the
// result does not depend on how threads share them out.
struct SimdKernels {
  void (*update)(const UpdateArgs&, int64_t begin, int64_t end);
  // Null in the baseline, which has no vectors worth it. Units: SeriesPlan's groups,
  // backward_units, gradient_units, and the kernel's padded channels. `scratch` is 64-byte aligned.
  void (*series)(const SeriesArgs&, float* scratch, int64_t begin, int64_t end);
  void (*series_backward)(const SeriesBackwardArgs&, float* scratch, int64_t begin, int64_t end);
  void (*series_gradient)(const SeriesBackwardArgs&, float* scratch, int64_t begin, int64_t end);
  void (*series_kernel)(const SeriesKernelArgs&, int64_t begin, int64_t end);
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
void series_gradient(const SeriesBackwardArgs& args, float* scratch, int64_t begin, int64_t end);
void series_kernel(const SeriesKernelArgs& args, int64_t begin, int64_t end);
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
  static constexpr int64_t kPanel = 32;   // rows of the kernel's gradient that are a unit
  static constexpr int64_t kMaxChunks = 16;

  int64_t block, padded, patch;         // channels of a block, of all; elements of a patch
  int64_t tiles_y, tiles_x, tiles;      // of an image
  int64_t staged_height, staged_width;  // of an image with its border of zeros
  int64_t group, groups, run;           // images of a group; groups; tiles of a run
  int64_t row, patches;                 // floats of a tile's row, of the patches of a run
  int64_t sums;                         // floats of the kernel's gradient, transformed

  // The two factors of the kernel's gradient that a degree has, of as many degrees as are kept
  // until they are multiplied: all where a group is one run, because the sums, larger than a cache,
  // are then gone through once; else one.
  int64_t pairs = 1;
  bool deferred = false;
  // Either the work of the backward pass is all factors, which the gradient is then made of row by
  // row; or, where that takes less memory, chunks of groups each add up sums of their own.
  bool factors_kept = false;
  int64_t chunks = 0;
  int64_t kept = 0;  // floats of the recomputed u of a group, if there are any

  enum Pass { kForward, kBackward, kRecompute };  // the last: backward, with the u again

  SeriesPlan(const SeriesArgs& a, int64_t block, Pass pass) : block(block) {
    padded = ceil_div(a.channels, block) * block;
    patch = (a.tile + 2) * (a.tile + 2);
    tiles_y = ceil_div(a.height, a.tile), tiles_x = ceil_div(a.width, a.tile);
    tiles = tiles_y * tiles_x > 0 ? tiles_y * tiles_x : 1;  // of empty images nothing is asked
    staged_height = tiles_y * a.tile + 2, staged_width = tiles_x * a.tile + 2;
    // Runs as long as the batch allows without leaving most threads idle.
    int64_t wanted = kMaxRun;
    while (wanted > kRows && a.images * tiles < 4 * wanted) wanted /= 2;
    group = wanted / tiles < 1 ? 1 : wanted / tiles;
    if (group > a.images && a.images > 0) group = a.images;
    groups = ceil_div(a.images, group);
    run = ceil_div(group * tiles, kRows) * kRows;
    if (run > kMaxRun) run = kMaxRun;
    row = padded + kPad;
    patches = patch * run * row;
    sums = patch * padded * padded;
    const int64_t image = a.height * a.width * a.channels;
    if (pass == kRecompute) kept = (a.degree - 1) * group * image;
    if (pass == kForward) return;
    deferred = group * tiles <= run;
    if (deferred) pairs = a.degree;
    // As many chunks as threads might want, in not much more memory than the batch has.
    const int64_t batch = 2 * a.images * image;
    chunks = (batch > 1 << 20 ? batch : 1 << 20) / sums;
    if (chunks < 2) chunks = 2;
    if (chunks > kMaxChunks) chunks = kMaxChunks;
    if (chunks > groups) chunks = groups;
    factors_kept = deferred && groups * factors() <= chunks * sums;
  }
  int64_t factors() const {  // floats of one group
    return 2 * pairs * patches;
  }
  int64_t products() const {  // floats of one block of channels of a run
    return patch * run * block;
  }
  int64_t staged() const {  // floats of one image of a group
    return group * staged_height * staged_width * padded;
  }
  int64_t scratch() const {
    return 3 * staged() + products() + kept + (factors_kept ? 0 : factors());
  }
  int64_t gradient_scratch() const {
    return factors_kept ? patch * kPanel * block : 0;
  }
  int64_t work() const {
    return factors_kept ? groups * factors() : chunks * sums;
  }
  int64_t backward_units() const {
    return factors_kept ? groups : chunks;
  }
  int64_t gradient_units() const {
    return factors_kept ? ceil_div(padded, kPanel) : padded;
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
