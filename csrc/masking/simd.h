// The CPU kernels of the family, one table per instruction set; simd.cpp is compiled once for each.
#pragma once

#include "masking/masking.h"

namespace robustcore::masking {

// A kernel processes units [begin, end) of its work. Units are fixed by the arguments alone, so the
// result does not depend on how threads share them out.
struct SimdKernels {
  void (*fill)(const FillArgs&, int64_t begin, int64_t end);
  void (*epilogue)(const EpilogueArgs&, int64_t begin, int64_t end);
};

extern const SimdKernels simd_baseline, simd_avx2, simd_avx512;

constexpr int64_t kChannelBlock = 32;  // channels of a unit; two cache lines of float32 a pixel
constexpr int64_t kTileColumns = 256;

// How the images are cut: a unit is a block of channels of a tile, or of the whole image where
// channels are adjacent in memory (they then make the vectors, and the mask tells which pixels to
// touch).
struct FillTiling {
  bool channels_adjacent;
  int64_t rows, columns;  // of one tile, without its halo
  int64_t row_tiles, column_tiles, channel_blocks;

  explicit FillTiling(const FillArgs& a)
      : channels_adjacent(a.mode == FillMode::kFill && a.multiply && a.channels >= 8 &&
                          a.x.strides[1] == 1 && a.out_strides[1] == 1) {
    columns = a.in_place || a.columns < kTileColumns ? a.columns : kTileColumns;
    // The arrays of one tile stay in the second level of cache, the halo is the smaller part.
    const int64_t area = a.iters <= 2 ? 8192 : 16384;
    const int64_t halo = halo_of(a);
    rows = area / (columns + 2 * halo + 2) - 2 * halo;
    if (rows < 16) rows = 16;
    if (a.in_place || rows > a.rows) rows = a.rows;
    row_tiles = ceil_div(a.rows, rows);
    column_tiles = ceil_div(a.columns, columns);
    channel_blocks = ceil_div(a.channels, kChannelBlock);
  }
  int64_t tiles() const {
    return channels_adjacent ? 1 : row_tiles * column_tiles;
  }
  int64_t units(const FillArgs& a) const {
    return a.images * channel_blocks * tiles();
  }
};

// Planes in logical order; rows of pixels where channels are adjacent.
inline int64_t epilogue_units(const EpilogueArgs& a) {
  return a.images * (a.channels_last ? a.rows : a.channels);
}

}  // namespace robustcore::masking
