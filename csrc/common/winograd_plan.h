// A 3 x 3 convolution of stride 1, cut up for Winograd's minimal filtering: by its shape and the
// width of the vectors alone, so that results do not depend on how threads share the work.
#pragma once

#include <algorithm>

#include "common/strided.h"

namespace robustcore {

struct WinogradShape {
  int64_t images, in, out;  // channels of the images and of the results
  int64_t height, width;    // of an image
  int64_t pad_y, pad_x;     // zeros on each side
  int64_t tile;             // results on the side of a tile, 2 or 4

  constexpr int64_t out_height() const {
    return height + 2 * pad_y - 2;
  }
  constexpr int64_t out_width() const {
    return width + 2 * pad_x - 2;
  }
};

// A group of images is staged with its border of zeros, transformed and multiplied while it is in
// the cache, a run of its tiles at a time. Channels are padded to whole vectors.
struct WinogradPlan {
  static constexpr int64_t kRows = 8;     // tiles that the matrix products take at a time
  static constexpr int64_t kMaxRun = 32;  // tiles whose patches lie in the cache together
  static constexpr int64_t kPad = 16;     // floats between rows, against aliasing in the cache

  WinogradShape shape;
  int64_t block, in, out;               // channels of a block; padded channels
  int64_t patch;                        // elements of a patch
  int64_t tiles_x, tiles;               // of an image
  int64_t staged_height, staged_width;  // of an image with its border
  int64_t group, groups, run, runs;  // images of a group; groups; tiles of a run; runs of a group
  int64_t in_row, out_row;           // floats of a tile's row

  WinogradPlan(const WinogradShape& s, int64_t block, int64_t in_multiple, int64_t out_multiple)
      : shape(s),
        block(block),
        in(ceil_div(s.in, in_multiple) * in_multiple),
        out(ceil_div(s.out, out_multiple) * out_multiple),
        patch((s.tile + 2) * (s.tile + 2)),
        in_row(in + kPad),
        out_row(out + kPad) {
    const int64_t tiles_y = ceil_div(s.out_height(), s.tile);
    tiles_x = ceil_div(s.out_width(), s.tile);
    staged_height = tiles_y * s.tile + 2, staged_width = tiles_x * s.tile + 2;
    tiles = std::max<int64_t>(tiles_y * tiles_x, 1);  // of empty images nothing is asked
    // Runs as long as the batch allows without leaving most threads idle.
    int64_t wanted = kMaxRun;
    while (wanted > kRows && s.images * tiles < 4 * wanted) wanted /= 2;
    group = std::max<int64_t>(std::min(wanted / tiles, s.images), 1);
    groups = ceil_div(s.images, group);
    run = std::min(ceil_div(group * tiles, kRows) * kRows, kMaxRun);
    runs = ceil_div(group * tiles, run);
  }
  int64_t images_of(int64_t g) const {  // a group; the last may have fewer
    return std::min(shape.images - g * group, group);
  }
  // Floats of
  int64_t staged() const {  // a staged group
    return group * staged_height * staged_width * in;
  }
  int64_t patches() const {  // the transformed patches of a run
    return patch * run * in_row;
  }
  int64_t products() const {  // one block of channels of a run's products
    return patch * run * block;
  }
  int64_t filter() const {  // the packed filter
    return patch * in * ceil_div(shape.out, block) * block;
  }
};

// The filter's gradient. A first pass over the images makes two factors of each run of tiles,
// [patch element, tile, out] and [patch element, tile, in], or of a polynomial of the convolution a
// pair of them each degree; a second pass makes the gradient of them.
struct WinogradGradientPlan : WinogradPlan {
  static constexpr int64_t kPanel = 32;  // rows of the gradient that are a unit of the second pass
  static constexpr int64_t kMaxChunks = 16;

  // Either all factors are kept for the second pass; or, where that takes much less memory, chunks
  // of groups each add up sums of their own.
  bool factors_kept;
  int64_t chunks;
  // Of a run, held until they are multiplied together: all where a group is one run, because the
  // sums, larger than a cache, are then gone through once.
  int64_t pairs;

  WinogradGradientPlan(const WinogradShape& s, int64_t block, int64_t out_multiple, int64_t degree)
      : WinogradPlan(s, block, block, out_multiple) {
    // As many chunks as threads might want, in not much more memory than the batch has.
    const int64_t x = s.in * s.height * s.width, y = s.out * s.out_height() * s.out_width();
    const int64_t batch = s.images * (x + y), most = std::min(groups, kMaxChunks);
    const int64_t fitting = std::max<int64_t>(batch, 1 << 20) / std::max<int64_t>(sums(), 1);
    chunks = std::min(std::max<int64_t>(fitting, 2), most);
    const int64_t factors = groups * runs * degree * pair();
    factors_kept = factors <= most * sums() && factors <= std::max(3 * batch, chunks * sums());
    pairs = factors_kept || runs == 1 ? degree : 1;
  }
  int64_t pair() const {  // floats of two factors
    return patch * run * (out_row + in_row);
  }
  int64_t sums() const {
    return patch * out * in;
  }
  int64_t group_factors() const {
    return runs * pairs * pair();
  }
  int64_t work() const {  // floats that the first pass leaves to the second
    return factors_kept ? groups * group_factors() : chunks * sums();
  }
  int64_t first_units() const {
    return factors_kept ? groups : chunks;
  }
  int64_t first_scratch() const {
    return factors_kept ? 0 : pairs * pair();
  }
  int64_t second_units() const {  // a panel and a block of its columns, or a row
    return factors_kept ? ceil_div(out, kPanel) * (in / block) : out;
  }
  int64_t second_scratch() const {
    return factors_kept ? patch * kPanel * block : 0;
  }
};

// packed[column block, patch element, padded input channel, block]: a filter, transformed, with
// zeros where channels are padded.
struct PackFilterArgs {
  int64_t in, out, padded_in, tile;
  bool transposed;      // filter is [in, out, 3, 3], and taken flipped
  const float* filter;  // [out, in, 3, 3]
  float* packed;
};

// The second pass.
struct FilterGradientArgs {
  WinogradGradientPlan plan;
  bool flipped;        // the factors are those of a filter that lies the other way round
  const float* work;   // [plan.work()]
  float* grad_filter;  // [out, in, 3, 3]
};

// On torch's threads, in the variant for this processor.
int64_t winograd_block();  // channels of a block; 0 where there is no kernel: no vectors worth it
void pack_filter(const PackFilterArgs& args);
void sum_filter_gradient(const FilterGradientArgs& args);

}  // namespace robustcore
