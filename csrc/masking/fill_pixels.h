// The CPU's fill where channels are adjacent in memory and the mask is zeros and ones: it becomes a
// list of the pixels to write, and channels make the vectors.
#pragma once

#include <cstring>
#include <vector>

#include "masking/fill.h"

namespace robustcore::masking {
inline namespace RC_ISA {

// For a mask of zeros and ones iteration t writes just the pixels at distance t from what is
// visible, once, from neighbours that are nearer.
class Levels {
 public:
  static constexpr uint8_t kNever = 255;  // beyond the last iteration

  // False if some value is neither 0 nor 1.
  bool bind(const FillArgs& args, int64_t image) {
    rows_ = args.rows, columns_ = args.columns;
    level_.assign(rows_ * columns_, kNever);
    bool binary = true;
    dispatch(args.mask.dtype, [&](auto tag) {
      using E = decltype(tag);
      for (int64_t r = 0; binary && r < rows_; ++r) {
        const E* from =
            static_cast<const E*>(args.mask.data) + offset_of(args.mask.strides, image, 0, r, 0);
        for (int64_t c = 0; c < columns_; ++c) {
          const auto m = convert<Arithmetic<E>>(from[c * args.mask.strides[3]]);
          if (m == 1) level_[r * columns_ + c] = 0;
          if (m != 0 && m != 1) binary = false;
        }
      }
    });
    for (int t = 1; binary && t <= args.iters; ++t) {
      for (int64_t r = 0; r < rows_; ++r) {
        for (int64_t c = 0; c < columns_; ++c) {
          uint8_t& level = level_[r * columns_ + c];
          if (level == kNever && visible(r, c, t) > 0) level = static_cast<uint8_t>(t);
        }
      }
    }
    return binary;
  }
  int operator()(int64_t row, int64_t column) const {
    return level_[row * columns_ + column];
  }
  // How many of a pixel's neighbours iteration t finds filled.
  int visible(int64_t row, int64_t column, int t) const {
    int count = 0;
    for_neighbours(row, column, t, [&](int64_t, int64_t) { ++count; });
    return count;
  }
  template <class Body>
  RC_HOST_DEVICE void for_neighbours(int64_t row, int64_t column, int t, const Body& body) const {
    for (int64_t r = row > 0 ? row - 1 : 0; r <= row + 1 && r < rows_; ++r) {
      for (int64_t c = column > 0 ? column - 1 : 0; c <= column + 1 && c < columns_; ++c) {
        if (level_[r * columns_ + c] < t) body(r, c);
      }
    }
  }

 private:
  int64_t rows_ = 0, columns_ = 0;
  std::vector<uint8_t> level_;
};

// The channels of one block of one image, pixel by pixel.
template <class E>
class PixelFill {
 public:
  using T = Arithmetic<E>;
  PixelFill(const FillArgs& args, const Levels& levels, const FillTile& block)
      : args_(args),
        levels_(levels),
        image_(block.image),
        first_(block.channel0),
        count_(static_cast<int>(block.channel1 - block.channel0)) {}

  // The first iteration reads x, so that most pixels are written once.
  void run() {
    for (int64_t r = 0; r < args_.rows; ++r) {
      for (int64_t c = 0; c < args_.columns; ++c) {
        const int level = levels_(r, c);
        if (level == 0) {
          if (args_.in_place) continue;
          memcpy(out(r, c), x(r, c), count_ * sizeof(E));
        } else if (level == 1) {
          mean(r, c, 1, [&](int64_t i, int64_t j) { return x(i, j); });
        } else {
          memset(static_cast<void*>(out(r, c)), 0, count_ * sizeof(E));
        }
      }
    }
    for (int t = 2; t <= args_.iters; ++t) {
      for (int64_t r = 0; r < args_.rows; ++r) {
        for (int64_t c = 0; c < args_.columns; ++c) {
          if (levels_(r, c) == t) {
            mean(r, c, t, [&](int64_t i, int64_t j) -> const E* { return out(i, j); });
          }
        }
      }
    }
  }

 private:
  const E* x(int64_t row, int64_t column) const {
    return static_cast<const E*>(args_.x.data) +
           offset_of(args_.x.strides, image_, first_, row, column);
  }
  E* out(int64_t row, int64_t column) const {
    return static_cast<E*>(args_.out) + offset_of(args_.out_strides, image_, first_, row, column);
  }
  template <class Source>
  RC_HOST_DEVICE void mean(int64_t row, int64_t column, int t, const Source& source) const {
    T in_row[FillTiling::kChannelBlock], sum[FillTiling::kChannelBlock];
    int64_t at_row = -1;
    int visible = 0;
    const int n = count_;
    for (int k = 0; k < n; ++k) sum[k] = in_row[k] = T(0);
    levels_.for_neighbours(row, column, t, [&](int64_t i, int64_t j) {
      const E* from = source(i, j);
      if (i != at_row) {
        for (int k = 0; k < n; ++k) sum[k] += in_row[k], in_row[k] = convert<T>(from[k]);
        at_row = i;
      } else {
        for (int k = 0; k < n; ++k) in_row[k] += convert<T>(from[k]);
      }
      ++visible;
    });
    const T weight = fill_weight(T(0), T(visible));
    E* const to = out(row, column);
    for (int k = 0; k < n; ++k) {
      to[k] = convert<E>(fused_multiply_add(weight, sum[k] + in_row[k], T(0)));
    }
  }

  const FillArgs& args_;
  const Levels& levels_;
  int64_t image_, first_;
  int count_;
};

}  // namespace RC_ISA
}  // namespace robustcore::masking
