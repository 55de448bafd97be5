#include "smoothing/pixel_votes.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

// The loops over a tile are the compiler's to vectorise: the logits come from memory once, and
// everything else stays in L1.
template <class T>
struct Tile {
  T best[kVotesPixels], scratch[kVotesPixels];
  int32_t at[kVotesPixels], nan[kVotesPixels];
};

// The logits of `count` pixels from `first` on for one class: in place where they lie side by side.
template <class T>
const T* class_logits(const PixelVotesArgs& args, int64_t sample, int64_t k, int64_t first,
                      int64_t count, T* scratch) {
  const StridedView& v = args.logits;
  constexpr DType own = std::is_same_v<T, double> ? DType::kFloat64 : DType::kFloat32;
  if (v.dtype == own && v.dims == 1 && v.strides[0] == 1) {
    return static_cast<const T*>(v.data) + sample * v.image_stride + k * v.sample_stride + first;
  }
  load_elements(v, sample, k, first, count, scratch);
  return scratch;
}

// The arg-max of each pixel of the tile, or -1 if its logits hold a NaN.
template <class T>
void argmax_of_tile(const PixelVotesArgs& args, int64_t sample, int64_t first, int64_t count,
                    Tile<T>& tile) {
  const T* logits = class_logits(args, sample, 0, first, count, tile.scratch);
  for (int64_t i = 0; i < count; ++i) {
    tile.best[i] = logits[i], tile.at[i] = 0, tile.nan[i] = logits[i] != logits[i];
  }
  for (int64_t k = 1; k < args.classes; ++k) {
    logits = class_logits(args, sample, k, first, count, tile.scratch);
    for (int64_t i = 0; i < count; ++i) {
      const T v = logits[i];
      const bool better = v > tile.best[i];
      tile.best[i] = better ? v : tile.best[i];
      tile.at[i] = better ? static_cast<int32_t>(k) : tile.at[i];
      tile.nan[i] |= v != v;
    }
  }
  for (int64_t i = 0; i < count; ++i) tile.at[i] = tile.nan[i] ? -1 : tile.at[i];
}

template <class T>
void votes_of_tile(const PixelVotesArgs& args, int64_t first, int64_t count) {
  Tile<T> tile;
  for (int64_t sample = 0; sample < args.samples; ++sample) {
    argmax_of_tile(args, sample, first, count, tile);
    if (args.chosen) {
      for (int64_t i = 0; i < count; ++i) {
        args.counts[first + i] += tile.at[i] >= 0 && tile.at[i] == args.chosen[first + i];
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        if (tile.at[i] >= 0) ++args.counts[tile.at[i] * args.pixels + first + i];
      }
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(pixel_votes)(const PixelVotesArgs& args, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit * kVotesPixels, left = args.pixels - first;
    const int64_t count = left < kVotesPixels ? left : kVotesPixels;
    if (args.logits.dtype == DType::kFloat64) {
      votes_of_tile<double>(args, first, count);
    } else {
      votes_of_tile<float>(args, first, count);
    }
  }
}

}  // namespace robustcore::smoothing
