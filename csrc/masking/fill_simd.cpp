#include <cstring>
#include <memory>

#include "masking/fill.h"
#include "masking/fill_pixels.h"

namespace robustcore::masking {
inline namespace RC_ISA {
namespace {

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

Region region_of(const FillArgs& args, const FillTile& tile) {
  const int64_t halo = halo_of(args);
  const int64_t row0 = tile.row0 > halo ? tile.row0 - halo : 0;
  const int64_t column0 = tile.column0 > halo ? tile.column0 - halo : 0;
  const int64_t row1 = tile.row1 + halo < args.rows ? tile.row1 + halo : args.rows;
  const int64_t column1 = tile.column1 + halo < args.columns ? tile.column1 + halo : args.columns;
  return {row0, column0, row1 - row0, column1 - column0};
}

template <class T>
void load_plane(const View4& view, int64_t image, int64_t channel, const Region& region, T* to) {
  for (int64_t r = 0; r < region.rows; ++r) {
    load_row(view, image, channel, region.row0 + r, region.column0, region.columns,
             to + (r + 1) * region.pitch() + 1);
  }
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
void store_plane(const FillArgs& args, const FillTile& tile, int64_t channel, const Region& region,
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

// Not inlined: among the caller's variables its loops run out of registers, a tenth of their speed.
template <class E>
__attribute__((noinline)) void fill_tile(const FillArgs& args, const FillTile& tile,
                                         Planes<Arithmetic<E>>& planes) {
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

template <class E>
void fill_units(const FillArgs& args, int64_t begin, int64_t end) {
  const FillTiling tiling(args);
  // Kept by the thread: fresh memory at every call would cost more than a small fill.
  static thread_local Planes<Arithmetic<E>> planes;
  // Between iterations a pixel's value is not rounded to a narrower type.
  const bool by_pixel =
      tiling.channels_adjacent && (sizeof(E) == sizeof(Arithmetic<E>) || args.iters <= 1);
  Levels levels;
  int64_t bound_image = -1;
  bool binary = false;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t block = unit / tiling.tiles(), image = block / tiling.channel_blocks;
    if (by_pixel && bound_image != image) {
      binary = levels.bind(args, image);
      bound_image = image;
    }
    const int64_t first = unit % tiling.tiles();
    if (by_pixel && binary) {
      PixelFill<E>(args, levels, tiling.tile(args, block, first)).run();
      continue;
    }
    const int64_t last =
        tiling.channels_adjacent ? tiling.row_tiles * tiling.column_tiles : first + 1;
    for (int64_t t = first; t < last; ++t) {
      fill_tile<E>(args, tiling.tile(args, block, t), planes);
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(fill)(const FillArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) { fill_units<decltype(tag)>(args, begin, end); });
}

}  // namespace robustcore::masking
