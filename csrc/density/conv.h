// A 3 x 3 convolution of stride 1 by Winograd's minimal filtering, its transpose, and the gradient
// of its kernel: what a model's double backward consists of. float32, on the CPU.
#pragma once

#include "common/strided.h"

namespace robustcore::density {

struct ConvShape {
  int64_t images, in, out;    // channels of x and of y
  int64_t height, width;      // of x
  int64_t pad_y, pad_x;       // zeros on each side
  int64_t tile;               // of the Winograd transform, 2 or 4
  bool x_is_last, y_is_last;  // channels last, else contiguous

  constexpr int64_t out_height() const {
    return height + 2 * pad_y - 2;
  }
  constexpr int64_t out_width() const {
    return width + 2 * pad_x - 2;
  }
};

struct ConvArgs {
  ConvShape shape;
  const float* x;
  const float* kernel;  // see ConvKernelArgs
  const float* bias;    // [out], or null
  float* y;
};

// Packs a kernel: packed[column block, patch element, padded input channels, block], zeros where
// channels are padded.
struct ConvKernelArgs {
  int64_t in, out, tile;
  bool transposed;      // weight is [in, out, 3, 3], and taken flipped
  const float* weight;  // [out, in, 3, 3]
  float* packed;
};

// grad_weight[o, i] = the correlation of grad[o], shaped as y, with x[i]: a first pass over the
// images leaves its factors, or their sums, in `work`, and a second makes the gradient of them.
struct ConvGradientArgs {
  ConvShape shape;
  const float* x;
  const float* grad;
  float* work;         // see ConvGradientPlan
  float* grad_weight;  // [out, in, 3, 3]
};

// How the work is cut up: by the arguments and the instruction set alone, so that the result does
// not depend on how threads share it out. A group of images is staged, transformed and multiplied
// while it is in the cache, a run of its tiles at a time.
struct ConvPlan {
  static constexpr int64_t kMaxRun = 32;  // tiles whose patches lie in cache together
  static constexpr int64_t kPad = 16;     // floats between rows, against aliasing in the cache

  int64_t block, in, out;               // channels of a block; padded channels
  int64_t patch;                        // elements of a patch
  int64_t tiles_x, tiles;               // of an image
  int64_t staged_height, staged_width;  // of an image of x with its border of zeros
  int64_t group, groups, run, runs;  // images of a group; groups; tiles of a run; runs of a group
  int64_t in_row, out_row;           // floats of a tile's row

  ConvPlan(const ConvShape& s, int64_t block, int64_t in_multiple, int64_t out_multiple)
      : block(block),
        in(ceil_div(s.in, in_multiple) * in_multiple),
        out(ceil_div(s.out, out_multiple) * out_multiple),
        patch((s.tile + 2) * (s.tile + 2)) {
    const int64_t tiles_y = ceil_div(s.out_height(), s.tile);
    tiles_x = ceil_div(s.out_width(), s.tile);
    tiles = tiles_y * tiles_x;
    staged_height = tiles_y * s.tile + 2, staged_width = tiles_x * s.tile + 2;
    // Runs as long as the batch allows without leaving most threads idle.
    int64_t wanted = kMaxRun;
    while (wanted > 8 && s.images * tiles < 4 * wanted) wanted /= 2;
    group = wanted / tiles < 1 ? 1 : wanted / tiles;
    if (group > s.images) group = s.images;
    groups = ceil_div(s.images, group);
    run = ceil_div(group * tiles, 8) * 8;
    if (run > kMaxRun) run = kMaxRun;
    runs = ceil_div(group * tiles, run);
    in_row = in + kPad, out_row = out + kPad;
  }
  int64_t staged() const {  // floats of a group of x with borders
    return group * staged_height * staged_width * in;
  }
  int64_t in_factors() const {  // floats of the patches of a run
    return patch * run * in_row;
  }
  int64_t dense(const ConvShape& s) const {  // floats of a group of y in padded channels
    return s.y_is_last ? 0 : group * s.out_height() * s.out_width() * out;
  }
};

struct ConvForwardPlan : ConvPlan {
  ConvForwardPlan(const ConvShape& s, int64_t block) : ConvPlan(s, block, block / 2, block) {}

  int64_t kernel() const {
    return patch * in * out;
  }
  int64_t products() const {  // floats of one block of channels of a run
    return patch * run * block;
  }
  int64_t scratch(const ConvShape& s) const {
    return staged() + in_factors() + products() + dense(s);
  }
};

struct ConvGradientPlan : ConvPlan {
  static constexpr int64_t kPanel = 32;  // output channels of a unit of the second pass
  static constexpr int64_t kMaxChunks = 16;

  // Either the work is the factors of all tiles, which the gradient is then made of panel by panel;
  // or, where that takes less memory, chunks of groups each add up sums of their own.
  bool factors_kept;
  int64_t chunks;

  ConvGradientPlan(const ConvShape& s, int64_t block) : ConvPlan(s, block, block, block / 2) {
    chunks = kMaxChunks < groups ? kMaxChunks : groups;
    factors_kept = groups * runs * factors() <= chunks * sums();
  }
  int64_t factors() const {  // floats of a run: of the gradient of y, then of x
    return patch * run * (out_row + in_row);
  }
  int64_t sums() const {
    return patch * out * in;
  }
  int64_t work() const {
    return factors_kept ? groups * runs * factors() : chunks * sums();
  }
  int64_t first_units() const {
    return factors_kept ? groups : chunks;
  }
  int64_t scratch(const ConvShape& s) const {
    return staged() + dense(s) + (factors_kept ? 0 : factors());
  }
  // Of the second pass: (panel, input block), or an output channel.
  int64_t second_units() const {
    return factors_kept ? ceil_div(out, kPanel) * (in / block) : out;
  }
  int64_t second_scratch() const {
    return factors_kept ? patch * kPanel * block : 0;
  }
};

}  // namespace robustcore::density
