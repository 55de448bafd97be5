#include "masking/simd.h"

#include <memory>
#include <vector>

namespace robustcore::masking {
inline namespace RC_ISA {
namespace {

template <class T>
using LanesOf = std::conditional_t<sizeof(T) == sizeof(double), ScalarDouble, Lanes>;
template <class T>
using OneLane = std::conditional_t<sizeof(T) == sizeof(double), ScalarDouble, Scalar>;

// Calls step(lanes, i) so that [begin, end) is covered: whole vectors, then single elements.
template <class T, class Step>
RC_HOST_DEVICE void for_vectors(int64_t begin, int64_t end, const Step& step) {
  using L = LanesOf<T>;
  int64_t i = begin;
  for (; i + L::kFloats <= end; i += L::kFloats) step(L{}, i);
  for (; i < end; ++i) step(OneLane<T>{}, i);
}

// weight == 0 keeps x.
template <class L>
RC_HOST_DEVICE typename L::Float fill_lanes(typename L::Float x, typename L::Float weight,
                                            typename L::Float sum) {
  if constexpr (L::kFloats == 1) {
    return filled(x, weight, sum);
  } else {
    const uint32_t keep = L::equal_mask(weight, L::splat(0.0f));
    return L::blend(keep, L::fma(weight, sum, x), x);
  }
}

// ---- Tiles: planes of one channel ----------------------------------------------------------------

// A tile with its halo as far as the image goes, and a frame of zeros: a 1-d array in which a
// neighbour is a fixed offset away, so vectors run over the ends of rows.
struct Region {
  int64_t row0, column0, rows, columns;  // what of the image it holds
  int64_t pitch() const {
    return columns + 2;
  }
  int64_t area() const {
    return (rows + 2) * pitch();
  }
  int64_t begin() const {  // of the rows inside the frame
    return pitch();
  }
  int64_t end() const {
    return (rows + 1) * pitch();
  }
  int64_t at(int64_t row, int64_t column) const {
    return (row - row0 + 1) * pitch() + column - column0 + 1;
  }
};

struct Tile {
  int64_t image, channel0, channel1, row0, row1, column0, column1;
};

Region region_of(const FillArgs& args, const Tile& tile) {
  const int64_t halo = halo_of(args);
  const int64_t row0 = tile.row0 > halo ? tile.row0 - halo : 0;
  const int64_t column0 = tile.column0 > halo ? tile.column0 - halo : 0;
  const int64_t row1 = tile.row1 + halo < args.rows ? tile.row1 + halo : args.rows;
  const int64_t column1 = tile.column1 + halo < args.columns ? tile.column1 + halo : args.columns;
  return {row0, column0, row1 - row0, column1 - column0};
}

template <class T>
void load_plane(const View4& view, int64_t image, int64_t channel, const Region& region, T* to) {
  dispatch(view.dtype, [&](auto tag) {
    using E = decltype(tag);
    const E* data = static_cast<const E*>(view.data);
    const int64_t stride = view.strides[3];
    for (int64_t r = 0; r < region.rows; ++r) {
      const E* from =
          data + offset_of(view.strides, image, channel, region.row0 + r, region.column0);
      T* row = to + (r + 1) * region.pitch() + 1;
      if (stride == 1) {
        for (int64_t c = 0; c < region.columns; ++c) row[c] = convert<T>(from[c]);
      } else {
        for (int64_t c = 0; c < region.columns; ++c) row[c] = convert<T>(from[c * stride]);
      }
    }
  });
}

template <class T>
void clear_frame(const Region& region, T* values) {
  const int64_t pitch = region.pitch();
  for (int64_t c = 0; c < pitch; ++c) values[c] = T(0), values[region.end() + c] = T(0);
  for (int64_t i = region.begin(); i < region.end(); i += pitch) {
    values[i] = T(0), values[i + pitch - 1] = T(0);
  }
}

// The scratch of one tile: planes of its region.
template <class T>
class Planes {
 public:
  void bind(const Region& region, int iters) {
    region_ = region, iters_ = iters;
    const int64_t need = region.area() * (iters + 4);
    if (need > size_) data_.reset(new T[need]), size_ = need;
  }

  RC_HOST_DEVICE T* values() {
    return data_.get();
  }
  RC_HOST_DEVICE T* mask() {
    return data_.get() + region_.area();
  }

  // The weights of every iteration, from mask(); values() is left with the mask after them. Whether
  // anything is to fill.
  bool make_weights() {
    T* const m = values();
    memcpy(m, mask(), region_.area() * sizeof(T));
    bool any = false;
    for (int t = 0; t < iters_; ++t) {
      T* const w = weights(t);
      sum_rows(m);
      for (int64_t i = region_.begin(); i < region_.end(); ++i) {
        const T visible = box<OneLane<T>>(i);
        w[i] = fill_weight(m[i], visible);
        m[i] = next_mask(m[i], visible);
      }
      clear_frame(region_, w);
      clear_frame(region_, m);
      for (int64_t i = region_.begin(); !any && i < region_.end(); ++i) any = w[i] != T(0);
    }
    return any;
  }

  void apply_mask() {
    T* const x = values();
    const T* const m = mask();
    for (int64_t i = 0; i < region_.area(); ++i) x[i] = masked(x[i], m[i]);
  }

  void step(int t) {
    T* const x = values();
    const T* const w = weights(t);
    sum_rows(x);
    for_vectors<T>(region_.begin(), region_.end(), [&](auto lanes, int64_t i) {
      using L = decltype(lanes);
      L::store(x + i, fill_lanes<L>(L::load(x + i), L::load(w + i), box<L>(i)));
    });
  }

  // x + B (w x). What it leaves in the frame is in no later sum: the weights there are 0.
  void step_transposed(int t) {
    T *const x = values(), *const product = data_.get() + 3 * region_.area();
    const T* const w = weights(t);
    for (int64_t i = 0; i < region_.area(); ++i) product[i] = w[i] == T(0) ? T(0) : w[i] * x[i];
    sum_rows(product);
    for_vectors<T>(region_.begin(), region_.end(), [&](auto lanes, int64_t i) {
      using L = decltype(lanes);
      L::store(x + i, L::load(x + i) + box<L>(i));
    });
  }

 private:
  RC_HOST_DEVICE T* sums() {
    return data_.get() + 2 * region_.area();
  }
  RC_HOST_DEVICE T* weights(int t) {
    return data_.get() + (4 + t) * region_.area();
  }
  // Of each element and its neighbours in the row.
  RC_HOST_DEVICE void sum_rows(const T* values) {
    T* const to = sums();
    const int64_t last = region_.area() - 1;
    to[0] = to[last] = T(0);  // corners of the frame
    for_vectors<T>(1, last, [&](auto lanes, int64_t i) {
      using L = decltype(lanes);
      L::store(to + i, (L::load(values + i - 1) + L::load(values + i)) + L::load(values + i + 1));
    });
  }
  // Of the rows above, at and below i.
  template <class L>
  RC_HOST_DEVICE typename L::Float box(int64_t i) {
    const T* const from = sums();
    const int64_t pitch = region_.pitch();
    return (L::load(from + i - pitch) + L::load(from + i)) + L::load(from + i + pitch);
  }

  Region region_{};
  int iters_ = 0;
  std::unique_ptr<T[]> data_;
  int64_t size_ = 0;
};

template <class E>
void store_plane(const FillArgs& args, const Tile& tile, int64_t channel, const Region& region,
                 const Arithmetic<E>* values) {
  const int64_t stride = args.out_strides[3];
  for (int64_t r = tile.row0; r < tile.row1; ++r) {
    E* to = static_cast<E*>(args.out) +
            offset_of(args.out_strides, tile.image, channel, r, tile.column0);
    const auto* row = values + region.at(r, tile.column0);
    const int64_t count = tile.column1 - tile.column0;
    if (stride == 1) {
      for (int64_t c = 0; c < count; ++c) to[c] = convert<E>(row[c]);
    } else {
      for (int64_t c = 0; c < count; ++c) to[c * stride] = convert<E>(row[c]);
    }
  }
}

template <class E>
void fill_tile(const FillArgs& args, const Tile& tile, Planes<Arithmetic<E>>& planes) {
  const Region region = region_of(args, tile);
  planes.bind(region, args.iters);
  clear_frame(region, planes.mask());
  load_plane(args.mask, tile.image, 0, region, planes.mask());
  const bool any = planes.make_weights();
  if (args.mode == FillMode::kState) {
    store_plane<E>(args, tile, 0, region, planes.values());
    return;
  }
  for (int64_t channel = tile.channel0; channel < tile.channel1; ++channel) {
    clear_frame(region, planes.values());
    load_plane(args.x, tile.image, channel, region, planes.values());
    if (args.mode == FillMode::kFill) {
      if (args.multiply) planes.apply_mask();
      for (int t = 0; any && t < args.iters; ++t) planes.step(t);
    } else {
      for (int t = args.iters - 1; any && t >= 0; --t) planes.step_transposed(t);
      if (args.multiply) planes.apply_mask();
    }
    store_plane<E>(args, tile, channel, region, planes.values());
  }
}

// ---- Adjacent channels: the mask is a list of what to do -----------------------------------------

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

// Channels [c0, c1) of one image, pixel by pixel.
template <class E>
class PixelFill {
 public:
  using T = Arithmetic<E>;
  PixelFill(const FillArgs& args, const Levels& levels, int64_t image, int64_t c0, int64_t c1)
      : args_(args),
        levels_(levels),
        image_(image),
        first_(c0),
        count_(static_cast<int>(c1 - c0)) {}

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
    T in_row[kChannelBlock], sum[kChannelBlock];
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
      to[k] = convert<E>(multiply_add(weight, sum[k] + in_row[k], T(0)));
    }
  }

  const FillArgs& args_;
  const Levels& levels_;
  int64_t image_, first_;
  int count_;
};

// ---- Units ---------------------------------------------------------------------------------------

template <class E>
void fill_units(const FillArgs& args, int64_t begin, int64_t end) {
  const FillTiling tiling(args);
  // Kept by the thread: fresh memory at every call would cost more than a small fill.
  static thread_local Planes<Arithmetic<E>> planes;
  Levels levels;
  int64_t bound_image = -1;
  bool binary = false;
  // Between iterations a pixel's value is not rounded to a narrower type.
  const bool by_pixel =
      tiling.channels_adjacent && (sizeof(E) == sizeof(Arithmetic<E>) || args.iters <= 1);
  const auto fill_tiles = [&](int64_t image, int64_t c0, int64_t c1, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t row = tile / tiling.column_tiles * tiling.rows;
      const int64_t column = tile % tiling.column_tiles * tiling.columns;
      const int64_t row1 = row + tiling.rows < args.rows ? row + tiling.rows : args.rows;
      const int64_t column1 =
          column + tiling.columns < args.columns ? column + tiling.columns : args.columns;
      fill_tile<E>(args, {image, c0, c1, row, row1, column, column1}, planes);
    }
  };
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t tile = unit % tiling.tiles(), block = unit / tiling.tiles();
    const int64_t c0 = block % tiling.channel_blocks * kChannelBlock;
    const int64_t c1 = c0 + kChannelBlock < args.channels ? c0 + kChannelBlock : args.channels;
    const int64_t image = block / tiling.channel_blocks;
    if (!tiling.channels_adjacent) {
      fill_tiles(image, c0, c1, tile, tile + 1);
      continue;
    }
    if (by_pixel && bound_image != image) {
      binary = levels.bind(args, image);
      bound_image = image;
    }
    if (by_pixel && binary) {
      PixelFill<E>(args, levels, image, c0, c1).run();
    } else {
      fill_tiles(image, c0, c1, 0, tiling.row_tiles * tiling.column_tiles);
    }
  }
}

void fill(const FillArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { fill_units<decltype(tag)>(args, begin, end); });
}

// ---- Epilogue ------------------------------------------------------------------------------------

template <class T>
T channel_value(const void* values, int64_t channel, T otherwise) {
  return values ? static_cast<const T*>(values)[channel] : otherwise;
}

// One row of a plane, or the channels of one pixel, in arithmetic type.
template <class E, class M, class S>
RC_HOST_DEVICE void epilogue_run(const EpilogueArgs& args, const E* x, E* out, int64_t count,
                                 const M& mask, const S& affine) {
  using T = Arithmetic<E>;
  const bool scaled = args.scale || args.shift, relu = args.relu;
  for (int64_t i = 0; i < count; ++i) {
    T scale, shift;
    affine(i, scale, shift);
    out[i] = convert<E>(epilogue(convert<T>(x[i]), scale, shift, scaled, relu, mask(i)));
  }
}

template <class E>
void epilogue_units_of(const EpilogueArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<E>;
  const int64_t rows = args.rows, columns = args.columns, channels = args.channels;
  std::vector<T> mask(columns, T(1));
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t per_image = args.channels_last ? rows : channels;
    const int64_t image = unit / per_image;
    const auto load_mask = [&](int64_t row) {
      if (!args.mask.data) return;
      for (int64_t c = 0; c < columns; ++c) {
        mask[c] = load_as<T>(args.mask.data, args.mask.dtype,
                             offset_of(args.mask.strides, image, 0, row, c));
      }
    };
    const E* x = static_cast<const E*>(args.x.data) + image * args.x.strides[0];
    E* out = static_cast<E*>(args.out) + image * channels * rows * columns;
    if (args.channels_last) {
      const int64_t row = unit % rows;
      load_mask(row);
      const auto affine = [&](int64_t i, T& scale, T& shift) {
        scale = channel_value(args.scale, i, T(1)), shift = channel_value(args.shift, i, T(0));
      };
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t at = (row * columns + c) * channels;
        const T m = mask[c];
        epilogue_run(args, x + at, out + at, channels, [m](int64_t) { return m; }, affine);
      }
    } else {
      const int64_t channel = unit % channels;
      const T one = channel_value(args.scale, channel, T(1));
      const T zero = channel_value(args.shift, channel, T(0));
      const T* const m = mask.data();
      for (int64_t row = 0; row < rows; ++row) {
        load_mask(row);
        const int64_t at = (channel * rows + row) * columns;
        epilogue_run(
            args, x + at, out + at, columns, [m](int64_t i) { return m[i]; },
            [=](int64_t, T& scale, T& shift) { scale = one, shift = zero; });
      }
    }
  }
}

void epilogue_kernel(const EpilogueArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { epilogue_units_of<decltype(tag)>(args, begin, end); });
}

}  // namespace
}  // namespace RC_ISA

const SimdKernels RC_CONCAT(simd_, RC_ISA) = {fill, epilogue_kernel};

}  // namespace robustcore::masking
