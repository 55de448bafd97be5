// A polynomial of the 3 x 3 convolution L with zero padding, applied to images of which a block of
// threads keeps a region in shared memory for all degrees: each step multiplies on the tensor
// cores. For the forward and the adjoint recurrence alike, on a GPU alone.
//
//   out[-1] = x, out[-2] = 0, out[s] = alpha[s] L out[s - 1] + beta[s] x + gamma[s] out[s - 2]
//
// y = out[last], or with a sum y = delta[0] x + delta[1] out[0] + ... + delta[degree] out[last].
//
// A region is a tile of y and what of the image its values depend on: `degree` pixels on each side
// that the image has. Step s computes what the later steps need of it, so a pixel near a tile's
// border is computed by several blocks, in the same order of operations: results do not depend on
// the tiling, nor on how many images a block takes.
#pragma once

#include <algorithm>

#include "common/dtype.h"
#include "common/strided.h"

namespace robustcore::lipschitz {

struct BlockShape {
  int32_t channels, height, width, degree;
  int32_t bytes;  // of an element

  bool supported() const {
    return (channels == 32 || channels == 64 || channels == 128) && (bytes == 2 || bytes == 4) &&
           height > 0 && width > 0 && height < kMaxSide && width < kMaxSide && degree > 0 &&
           degree <= kMaxDegree;
  }
  static constexpr int32_t kMaxDegree = 64, kMaxSide = 1024;
};

// How an axis is cut into tiles.
struct BlockAxis {
  int32_t size, tiles, halo;

  RC_HOST_DEVICE int32_t tile() const {
    return (size + tiles - 1) / tiles;
  }
  // The pixels [begin, end) that are within `reach` of tile i.
  RC_HOST_DEVICE int32_t begin(int32_t i, int32_t reach) const {
    const int32_t at = i * tile() - reach;
    return at > 0 ? at : 0;
  }
  RC_HOST_DEVICE int32_t end(int32_t i, int32_t reach) const {
    const int32_t at = (i + 1) * tile() + reach;
    return at < size ? at : size;
  }
  int32_t region() const {  // of the largest
    int32_t most = 0;
    for (int32_t i = 0; i < tiles; ++i) most = std::max(most, end(i, halo) - begin(i, halo));
    return most;
  }
  int64_t computed(int32_t reach) const {  // pixels of all tiles
    int64_t sum = 0;
    for (int32_t i = 0; i < tiles; ++i) sum += end(i, reach) - begin(i, reach);
    return sum;
  }
  bool whole() const {  // no tile is empty
    return (tiles - 1) * tile() < size;
  }
};

// How a GPU works on images of a shape.
struct BlockPlan {
  // A warp's part of a product: pixels by output channels. It takes its L in slices, a few
  // products deep, that all warps of a block share.
  static constexpr int32_t kPixels = 64, kChannels = 32, kMaxWarps = 8;
  static constexpr int32_t kSlice = 96, kStages = 3;  // bytes of a row of L; slices on their way
  // 16 bytes more than a multiple of 32 keep eight neighbouring rows in different banks.
  static constexpr int32_t kSlicePitch = kSlice + 16;
  static constexpr int32_t kZeros = 32;  // what lies outside of an image, as long as a product

  BlockShape shape;
  BlockAxis rows, columns;
  int32_t images;  // of a block

  RC_HOST_DEVICE int32_t pitch() const {  // bytes of a pixel
    return shape.channels * shape.bytes + 16;
  }
  int64_t pixels() const {  // of a block's largest region
    return int64_t{1} * images * rows.region() * columns.region();
  }
  int64_t map() const {
    return pixels() * pitch();
  }
  int64_t shared() const {
    return 2 * map() + kStages * shape.channels * kSlicePitch + kZeros;
  }
  RC_HOST_DEVICE int32_t tiles() const {
    return rows.tiles * columns.tiles;
  }
  int64_t work() const {  // pixels of all degrees
    int64_t sum = 0;
    for (int32_t s = 0; s < shape.degree; ++s) sum += rows.computed(s) * columns.computed(s);
    return sum;
  }
  int64_t parts() const {
    return ceil_div(pixels(), kPixels) * (shape.channels / kChannels);
  }
  int32_t warps() const {
    return static_cast<int32_t>(std::min<int64_t>(parts(), kMaxWarps));
  }
};

// The tiling of least work that fits, and as many images a block as its warps take at once and
// leave no processor idle. Without any, `images` is 0: nothing fits, or more would be computed
// twice than once.
inline BlockPlan block_plan(const BlockShape& shape, int64_t limit, int64_t images,
                            int64_t processors) {
  constexpr int32_t kMaxTiles = 8;  // along an axis
  BlockPlan best{};
  if (!shape.supported()) return best;
  const int64_t least = int64_t{1} * shape.height * shape.width * shape.degree;
  for (int32_t y = 1; y <= kMaxTiles; ++y) {
    for (int32_t x = 1; x <= kMaxTiles; ++x) {
      const BlockPlan plan{
          shape, {shape.height, y, shape.degree}, {shape.width, x, shape.degree}, 1};
      if (!plan.rows.whole() || !plan.columns.whole() || plan.shared() > limit) continue;
      if (plan.work() > 2 * least || (best.images && plan.work() >= best.work())) continue;
      best = plan;
    }
  }
  for (BlockPlan more = best; best.images && best.tiles() == 1; best = more) {
    ++more.images;
    if (more.parts() > BlockPlan::kMaxWarps || more.shared() > limit ||
        more.images * processors > images) {
      break;
    }
  }
  return best;
}

// ---- Pixels of a block -----------------------------------------------------------------------------

// n / d for 0 <= n < 2^20: the quotient of n + 1/2 is further from an integer than it is rounded.
struct Divisor {
  int d;
  float inverse;

  RC_HOST_DEVICE explicit Divisor(int d_) : d(d_), inverse(1.0f / static_cast<float>(d_)) {}
  RC_HOST_DEVICE int divide(int n) const {
    return static_cast<int>((static_cast<float>(n) + 0.5f) * inverse);
  }
};

// Rows [top, top + height) and columns [left, left + width) of the images of a block.
struct Rectangle {
  int top, left, height, width;

  RC_HOST_DEVICE bool has(int y, int x) const {
    return y >= top && y < top + height && x >= left && x < left + width;
  }
};

struct Pixel {
  int image, y, x;  // the image counts in the block
};

// The pixels of a rectangle in all images of a block, by number.
struct Pixels {
  Rectangle in;
  Divisor area, width;

  RC_HOST_DEVICE explicit Pixels(const Rectangle& in_)
      : in(in_), area(in_.height * in_.width), width(in_.width) {}
  RC_HOST_DEVICE Pixel operator[](int i) const {
    const int image = area.divide(i), rest = i - image * area.d, row = width.divide(rest);
    return {image, in.top + row, in.left + rest - row * in.width};
  }
};

// ---- Arguments -------------------------------------------------------------------------------------

struct BlockSeriesArgs {
  DType dtype;
  int64_t images;
  const void* x;       // [images, height, width, channels], 16-aligned
  const void* filter;  // [channels, 3, 3, channels], 16-aligned
  void* y;             // like x
  void* maps;          // out[0] of [degree - 1, images, ...], each like x; or null
  int64_t map_step;    // elements from out[s] to out[s + 1]
  bool summed;
  float alpha[BlockShape::kMaxDegree], beta[BlockShape::kMaxDegree], gamma[BlockShape::kMaxDegree];
  float delta[BlockShape::kMaxDegree + 1];
  BlockShape shape;
};

bool series_block_fits_cuda(const BlockShape& shape, int device);
// With a plan of the current device, or one that is given.
void series_block_cuda(const BlockSeriesArgs& args, void* stream);
void series_block_cuda_as(const BlockSeriesArgs& args, const BlockPlan& plan, void* stream);

}  // namespace robustcore::lipschitz
