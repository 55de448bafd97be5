// Filling what a mask hides from its neighbours: the arguments of the kernels and the arithmetic
// that both devices run. x_0 = x * m_0, then `iters` times
//   x_{t+1} = x_t + w_t * B x_t,   w_t = (1 - m_t) / (B m_t + 1e-5),   m_{t+1} = min(m_t + B m_t,
//   1)
// with B the 3x3 box sum, zeros outside the image. A sum has one order everywhere, (left + centre)
// + right in a row and (upper + middle) + lower of the rows, so bits do not depend on the device,
// the instruction set, the layout or the tiles. Where m is 0 nothing of x is read, not even a NaN.
#pragma once

#include "common/math.h"
#include "common/strided.h"
#include "common/variants.h"
#include "masking/view.h"

namespace robustcore::masking {

// Iterations of one pass, which set the width of a tile's halo. More are made of several passes.
constexpr int kMaxIters = 8;
constexpr int kMaxItersTransposed = 4;

enum class FillMode : int32_t {
  kFill,       // out = x_iters
  kTranspose,  // the same linear map of x, transposed
  kState,      // out = m_iters; x is not read
};

struct FillArgs {
  int64_t images, channels, rows, columns;
  View4 x;     // [images, channels, rows, columns]
  View4 mask;  // [images, 1, rows, columns]
  int32_t iters;
  bool multiply;  // x by the mask; else x_0 = x
  FillMode mode;
  bool in_place;  // out is x: planes are not cut, so that no tile reads what another wrote
  void* out;      // [images, channels, rows, columns]
  DType dtype;    // of out: x's (the mask's in kState)
  int64_t out_strides[4];
};

RC_VARIANTS(fill, const FillArgs& args, int64_t begin, int64_t end);
void fill_cuda(const FillArgs& args, void* stream);

// How far outside a tile its values come from. The transposed map begins with the last iteration's
// weights, which are themselves that many iterations away from the mask.
constexpr int64_t halo_of(const FillArgs& args) {
  return args.mode == FillMode::kTranspose ? 2 * args.iters : args.iters;
}

// From the first to before the second of each.
struct FillTile {
  int64_t image, channel0, channel1, row0, row1, column0, column1;
};

// How the CPU cuts images: a unit is a block of channels of a tile, or of the whole image where
// channels are adjacent in memory (they then make the vectors, and the mask tells which pixels to
// touch).
struct FillTiling {
  static constexpr int64_t kChannelBlock = 32;  // two cache lines of float32 a pixel
  static constexpr int64_t kTileColumns = 256;

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
  // Tile `index` of the image of a block of channels.
  FillTile tile(const FillArgs& a, int64_t block, int64_t index) const {
    const auto at_most = [](int64_t end, int64_t most) { return end < most ? end : most; };
    FillTile t{};
    t.image = block / channel_blocks;
    t.channel0 = block % channel_blocks * kChannelBlock;
    t.channel1 = at_most(t.channel0 + kChannelBlock, a.channels);
    t.row0 = index / column_tiles * rows;
    t.row1 = at_most(t.row0 + rows, a.rows);
    t.column0 = index % column_tiles * columns;
    t.column1 = at_most(t.column0 + columns, a.columns);
    return t;
  }
};

inline namespace RC_ISA {

template <class T>
RC_HOST_DEVICE T fill_weight(T m, T visible) {
  return (T(1) - m) / (visible + T(1e-5));
}

template <class T>
RC_HOST_DEVICE T next_mask(T m, T visible) {
  return m + visible < T(1) ? m + visible : T(1);
}

// Where nothing is to fill, x stays as it is, whatever its neighbours are.
template <class T>
RC_HOST_DEVICE T filled(T x, T weight, T sum) {
  return weight == T(0) ? x : fused_multiply_add(weight, sum, x);
}

}  // namespace RC_ISA
}  // namespace robustcore::masking
