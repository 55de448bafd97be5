#include <cstring>

#include "smoothing/ablation.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

// A row of vectors may be read up to a vector past its end: buffers carry that much padding.
constexpr int64_t kPad = Lanes::kElements;

// out[i] = kept[i] where bit i is set, else other[i].
template <class Out>
void select_row(const uint32_t* bits, const Out* kept, const Out* other, int64_t count, Out* out) {
  if constexpr (sizeof(Out) == sizeof(float) && Lanes::kFloats > 1) {
    for (int64_t i = 0; i < count; i += Lanes::kFloats) {
      const uint32_t mask = bits[i / 32] >> (i % 32);
      const auto v = Lanes::blend(mask, Lanes::load(other + i), Lanes::load(kept + i));
      if (count - i >= Lanes::kFloats) {
        Lanes::store(out + i, v);
      } else {
        Lanes::store_partial(out + i, v, static_cast<int>(count - i));
      }
    }
  } else {
    for (int64_t first = 0; first < count; first += 32) {
      const uint32_t mask = bits[first / 32];
      const int n = count - first < 32 ? static_cast<int>(count - first) : 32;
      for (int i = 0; i < n; ++i) {
        out[first + i] = mask >> i & 1 ? kept[first + i] : other[first + i];
      }
    }
  }
}

// The kept and the other values of a tile in memory order: with channels last, neighbouring
// channels of a pixel lie side by side.
template <class Out>
struct SelectTile {
  Out kept[kTileElements + kPad], other[kTileElements + kPad];

  void load(const SelectArgs& args, const SampleTile& tile) {
    using T = Arithmetic<Out>;
    T loaded[kTileElements];
    for (int64_t c = 0; c < tile.channels; ++c) {
      const int64_t first = (tile.channel + c) * args.pixels + tile.pixel;
      load_elements(args.values, tile.image, 0, first, tile.pixels, loaded);
      for (int64_t i = 0; i < tile.pixels; ++i) {
        kept[i * tile.channels + c] = convert<Out>(loaded[i]);
        loaded[i] = T(0);
      }
      if (args.fill.data) {
        load_elements(args.fill, tile.image, 0, first, tile.pixels, loaded);
      }
      for (int64_t i = 0; i < tile.pixels; ++i) {
        other[i * tile.channels + c] = convert<Out>(loaded[i]);
      }
    }
  }
};

template <class Out>
void select_units(const SelectArgs& args, int64_t begin, int64_t end) {
  const SampleTiling tiling = select_tiling(args);
  SelectTile<Out> values;
  for (int64_t unit = begin; unit < end; ++unit) {
    const SampleTile tile = tiling.tile(unit);
    values.load(args, tile);
    for (int64_t s = tile.sample; s < tile.samples; ++s) {
      const uint32_t* bits =
          mask_row(args.masks, args.mask_images, args.samples, args.pixels, tile.image, s) +
          tile.pixel / 32;
      Out* out = static_cast<Out*>(args.out) +
                 (tile.image * args.samples + s) * args.channels * args.pixels;
      if (!args.channels_last) {
        select_row(bits, values.kept, values.other, tile.pixels,
                   out + tile.channel * args.pixels + tile.pixel);
        continue;
      }
      out += tile.pixel * args.channels + tile.channel;
      for (int64_t i = 0; i < tile.pixels; ++i, out += args.channels) {
        const bool keeps = bits[i / 32] >> (i % 32) & 1;
        const Out* from = (keeps ? values.kept : values.other) + i * tile.channels;
        for (int64_t c = 0; c < tile.channels; ++c) out[c] = from[c];
      }
    }
  }
}

template <class T>
void kept_sums_units(const KeptSumsArgs& args, int64_t begin, int64_t end) {
  const int64_t tiles = ceil_div(args.pixels, kSumsTile);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t plane = unit / tiles, first = unit % tiles * kSumsTile;
    const int64_t image = plane / args.channels, channel = plane % args.channels;
    const int64_t count = first + kSumsTile < args.pixels ? kSumsTile : args.pixels - first;
    T g[kSumsTile], sum[kSumsTile] = {};
    for (int64_t run = 0; run < args.samples; run += kSumRun) {
      const int64_t run_end = run + kSumRun < args.samples ? run + kSumRun : args.samples;
      T part[kSumsTile] = {};
      for (int64_t s = run; s < run_end; ++s) {
        const uint32_t* bits =
            mask_row(args.masks, args.mask_images, args.samples, args.pixels, image, s) +
            first / 32;
        load_elements(args.grad, image, s, channel * args.pixels + first, count, g);
        for (int64_t i = 0; i < count; ++i) part[i] += bits[i / 32] >> (i % 32) & 1 ? g[i] : T(0);
      }
      for (int64_t i = 0; i < count; ++i) sum[i] += part[i];
    }
    memcpy(static_cast<T*>(args.sum) + plane * args.pixels + first, sum, count * sizeof(T));
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(pixel_masks)(const PixelMaskArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kDraws = 256;
  const PhiloxKey key = philox_key(args.stream.seed);
  const PhiloxKeys<Lanes> keys(key);
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream),
                words = mask_words(args.pixels);
  const int64_t marked = marked_pixels(args);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = image0 + unit / args.samples;
    const int64_t sample = sample0 + unit % args.samples;
    const PhiloxRow row = stream_row(key, Domain::kAblation, image, sample);
    uint32_t* marks = args.masks + unit * words;
    memset(marks, 0, words * sizeof(uint32_t));
    for (int64_t first = 0; first < marked; first += kDraws) {
      const int64_t count = marked - first < kDraws ? marked - first : kDraws;
      float drawn[kDraws];  // the words' bits
      for (int64_t i = 0; i < count; i += Lanes::kElements) {
        const auto counter = Lanes::counters(static_cast<uint32_t>((first + i) / 4));
        typename Lanes::Float v[Lanes::kVectors];
        words_in_order<Lanes>(row, philox_column<Lanes>(counter), keys, v,
                              [](auto r, auto t, auto& a, auto& b) {
                                a = Lanes::as<typename Lanes::Float>(r);
                                b = Lanes::as<typename Lanes::Float>(t);
                              });
        for (int j = 0; j < Lanes::kVectors; ++j)
          Lanes::store(drawn + i + j * Lanes::kFloats, v[j]);
      }
      for (int64_t i = 0; i < count; ++i) {
        const auto step = static_cast<uint32_t>(first + i);
        const auto last = static_cast<uint32_t>(args.pixels - marked + step);
        mark(marks,
             draw_below(bit_cast<uint32_t>(drawn[i]), last + 1, args.stream.seed, image, sample,
                        step),
             last);
      }
    }
    if (marked != args.kept) {
      for (int64_t w = 0; w < words; ++w) marks[w] = ~marks[w];
      if (args.pixels % 32) marks[words - 1] &= (1u << args.pixels % 32) - 1;
    }
  }
}

void RC_VARIANT(patch_masks)(const PatchMaskArgs& args, int64_t begin, int64_t end) {
  const int64_t words = mask_words(args.height * args.width);
  for (int64_t s = begin; s < end; ++s) {
    const int64_t position = args.first + s;
    const int64_t top = position / args.columns * args.stride_h;
    const int64_t left = position % args.columns * args.stride_w;
    for (int64_t w = 0; w < words; ++w) {
      args.masks[s * words + w] = window_word(args, top, left, w);
    }
  }
}

void RC_VARIANT(select)(const SelectArgs& args, int64_t begin, int64_t end) {
  dispatch(args.out_dtype, [&](auto tag) { select_units<decltype(tag)>(args, begin, end); });
}

void RC_VARIANT(kept_sums)(const KeptSumsArgs& args, int64_t begin, int64_t end) {
  if (args.grad.dtype == DType::kFloat64) {
    kept_sums_units<double>(args, begin, end);
  } else {
    kept_sums_units<float>(args, begin, end);
  }
}

}  // namespace robustcore::smoothing
