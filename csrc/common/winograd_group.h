// A group of images and the tiles of their results: what the kernels that convolve by Winograd's
// minimal filtering are made of. A kernel says what is staged and what becomes of the results.
#pragma once

#include "common/winograd_tiles.h"

#if !defined(__CUDACC__) && defined(__AVX2__)
namespace robustcore {
inline namespace RC_ISA {

// Cuts a kernel's scratch memory up.
class ScratchFloats {
 public:
  explicit ScratchFloats(float* next) : next_(next) {}
  float* take(int64_t floats) {
    float* taken = next_;
    next_ += floats;
    return taken;
  }
  float* take_zeros(int64_t floats) {
    float* taken = take(floats);
    memset(taken, 0, floats * sizeof(float));
    return taken;
  }

 private:
  float* next_;
};

template <int M>
class WinogradGroup {
 public:
  static constexpr int kPatch = (M + 2) * (M + 2);

  // Where a result lies, in pixels: among the group's results, and, where those are as large as the
  // images, among its staged images.
  struct Pixel {
    int64_t dense, staged;
  };

  explicit WinogradGroup(const WinogradPlan& plan) : plan_(plan), shape_(plan.shape) {}

  void start(int64_t group) {
    first_image_ = group * plan_.group;
    images_ = plan_.images_of(group);
  }
  int64_t first_image() const {
    return first_image_;
  }
  int64_t images() const {
    return images_;
  }
  int64_t tiles() const {  // of the present run
    return tiles_;
  }

  // The group's images, out of the whole batch; the border and the padding of `staged` are zero.
  void stage(const float* batch, bool channels_last, float* staged) const {
    const int64_t c = shape_.in, image = shape_.height * shape_.width * c;
    const int64_t row = plan_.staged_width * plan_.in;
    const float* p = batch + first_image_ * image;
    float* corner = staged + shape_.pad_y * row + shape_.pad_x * plan_.in;
    for (int64_t i = 0; i < images_; ++i, p += image, corner += plan_.staged_height * row) {
      image_to_rows(p, c, shape_.height, shape_.width, channels_last, {corner, row, plan_.in});
    }
  }

  // Calls body(index) for each run of tiles, which the functions below are then about.
  template <class Body>
  void for_each_run(const Body& body) {
    const int64_t all = images_ * plan_.tiles;
    for (int64_t run = 0, first = 0; first < all; ++run, first += plan_.run) {
      tiles_ = std::min(all - first, plan_.run);
      for (int64_t t = 0; t < tiles_; ++t) set_tile(first + t, tile_[t]);
      body(run);
    }
  }

  // patches[f, tile, in]. Rows up to a multiple of kTileRows are computed with and dropped; they
  // must not be slow denormals.
  void transform(const float* staged, float* patches) const {
    const int64_t down = plan_.staged_width * plan_.in, next = plan_.run * plan_.in_row;
    for (int64_t t = 0; t < tiles_; ++t) {
      const float* p = staged + tile_[t].staged * plan_.in;
      for (int64_t c = 0; c < plan_.in; c += Lanes::kFloats, p += Lanes::kFloats) {
        transform_patch<M>([&](int i, int j) { return Lanes::load(p + i * down + j * plan_.in); },
                           patches + t * plan_.in_row + c, next);
      }
    }
    for (int64_t t = tiles_; t % kTileRows != 0; ++t) {
      for (int f = 0; f < kPatch; ++f) {
        memset(patches + f * next + t * plan_.in_row, 0, plan_.in * sizeof(float));
      }
    }
  }

  // The filter's image of the patches: sink(pixel, c, v) receives the lanes v of channels c,
  // c + 1, ... of each result.
  template <class Sink>
  void convolve(const float* patches, const float* filter, float* products,
                const Sink& sink) const {
    const int64_t next = plan_.run * plan_.in_row;
    const int64_t rows = ceil_div(tiles_, kTileRows) * kTileRows;
    for (int64_t c = 0; c < plan_.out; c += kTileBlock) {
      for (int f = 0; f < kPatch; ++f, filter += plan_.in * kTileBlock) {
        for (int64_t t = 0; t < rows; t += kTileRows) {
          multiply_tiles(patches + f * next + t * plan_.in_row, plan_.in_row, filter, plan_.in,
                         products + (t * kPatch + f) * kTileBlock, kPatch * kTileBlock);
        }
      }
      for (int64_t t = 0; t < tiles_; ++t) {
        for (int half = 0; half < kTileBlock && c + half < shape_.out; half += Lanes::kFloats) {
          finish(tile_[t], products + t * kPatch * kTileBlock + half, c + half, sink);
        }
      }
    }
  }

  // adjoints[f, tile, out]: the adjoint of the results' transform on weight * results, which are
  // the group's, `channels` floats a pixel.
  void transform_adjoint(const float* results, int64_t channels, float weight,
                         float* adjoints) const {
    const int64_t down = shape_.out_width() * channels, next = plan_.run * plan_.out_row;
    const Lanes::Float scale = Lanes::splat(weight);
    for (int64_t t = 0; t < tiles_; ++t) {
      const Tile& tile = tile_[t];
      const float* p = results + tile.dense * channels;
      for (int64_t c = 0; c < plan_.out; c += Lanes::kFloats, p += Lanes::kFloats) {
        const auto load = [&](int i, int j) {
          return i < tile.height && j < tile.width
                     ? scale * load_first(p + i * down + j * channels, channels - c)
                     : Lanes::splat(0.0f);
        };
        transform_result_adjoint<M>(load, adjoints + t * plan_.out_row + c, next);
      }
    }
  }

 private:
  struct Tile {
    int64_t dense, staged;  // pixels before its first result and its first input
    int height, width;      // of what lies in the image
  };

  void set_tile(int64_t index, Tile& tile) const {
    const int64_t image = index / plan_.tiles, rest = index % plan_.tiles;
    const int64_t y = rest / plan_.tiles_x * M, x = rest % plan_.tiles_x * M;
    const int64_t height = shape_.out_height(), width = shape_.out_width();
    tile.dense = (image * height + y) * width + x;
    tile.staged = (image * plan_.staged_height + y) * plan_.staged_width + x;
    tile.height = static_cast<int>(std::min<int64_t>(height - y, M));
    tile.width = static_cast<int>(std::min<int64_t>(width - x, M));
  }

  template <class Sink>
  void finish(const Tile& tile, const float* products, int64_t c, const Sink& sink) const {
    transform_result<M>(products, tile.height, [&](int i, const Lanes::Float(&row)[M]) {
      const int64_t dense = tile.dense + i * shape_.out_width();
      const int64_t staged = tile.staged + (i + shape_.pad_y) * plan_.staged_width + shape_.pad_x;
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        if (j >= tile.width) break;
        sink(Pixel{dense + j, staged + j}, c, row[j]);
      }
    });
  }

  const WinogradPlan& plan_;
  const WinogradShape& shape_;
  Tile tile_[WinogradPlan::kMaxRun];
  int64_t first_image_ = 0, images_ = 0, tiles_ = 0;
};

// The factors of a filter's gradient, as its first pass makes them.
class WinogradFactors {
 public:
  WinogradFactors(const WinogradGradientPlan& plan, float* work, float* scratch)
      : plan_(plan), work_(work), factors_(scratch) {}

  // Calls body(group) for the groups of units [begin, end), which makes their factors.
  template <class Body>
  void for_each_group(int64_t begin, int64_t end, const Body& body) {
    for (int64_t unit = begin; unit < end; ++unit) {
      if (plan_.factors_kept) {
        factors_ = work_ + unit * plan_.group_factors();
        body(unit);
        continue;
      }
      sums_ = work_ + unit * plan_.sums();
      memset(sums_, 0, plan_.sums() * sizeof(float));
      const int64_t last = (unit + 1) * plan_.groups / plan_.chunks;
      for (int64_t g = unit * plan_.groups / plan_.chunks; g < last; ++g) body(g);
    }
  }

  // Where the factors of a run and a degree belong: [f, tile, out] and [f, tile, in].
  float* out(int64_t run, int64_t degree) const {
    const int64_t pair = (plan_.factors_kept ? run * plan_.pairs : 0) + degree % plan_.pairs;
    return factors_ + pair * plan_.pair();
  }
  float* in(int64_t run, int64_t degree) const {
    return out(run, degree) + plan_.patch * plan_.run * plan_.out_row;
  }

  // Both are there, of so many tiles.
  void add(int64_t tiles, int64_t degree) const {
    if (plan_.factors_kept || (degree + 1) % plan_.pairs != 0) return;
    const float *a = factors_, *b = in(0, 0);
    float* sums = sums_;
    for (int64_t f = 0; f < plan_.patch; ++f, sums += plan_.out * plan_.in) {
      for (int64_t i = 0; i < plan_.in; i += kTileBlock) {
        for (int64_t o = 0; o < plan_.out; o += kTileRows) {
          multiply_tiles_transposed(a + o, plan_.out_row, b + i, plan_.in_row, tiles, plan_.pairs,
                                    plan_.pair(), sums + o * plan_.in + i, plan_.in);
        }
      }
      a += plan_.run * plan_.out_row, b += plan_.run * plan_.in_row;
    }
  }

 private:
  const WinogradGradientPlan& plan_;
  float *work_, *factors_, *sums_ = nullptr;
};

}  // namespace RC_ISA
}  // namespace robustcore
#endif
