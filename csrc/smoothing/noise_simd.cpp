#include <cstring>

#include "smoothing/noise.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

using Float = Lanes::Float;

// A run may read and write up to one step past its end: buffers carry that much padding.
constexpr int64_t kPad = Lanes::kElements;

// The noise of one seed, row by row.
template <Distribution kDistribution>
class NoiseRun {
 public:
  explicit NoiseRun(const Stream& stream, const Lattice& lattice = {})
      : seed_(stream.seed), lattice_(lattice), key_(philox_key(stream.seed)), keys_(key_) {}

  struct Row {
    PhiloxRow words;
    int64_t image, sample;
  };
  Row row(int64_t image, int64_t sample) const {
    return {stream_row(key_, domain_of(kDistribution), image, sample), image, sample};
  }

  // Calls emit(offset, vector) for elements first, first + 1, ... until `count` are covered;
  // `first` is a multiple of 4.
  template <class Emit>
  RC_HOST_DEVICE void operator()(const Row& row, int64_t first, int64_t count,
                                 const Emit& emit) const {
    for (int64_t done = 0; done < count; done += Lanes::kElements) {
      const auto column =
          philox_column<Lanes>(Lanes::counters(static_cast<uint32_t>((first + done) / 4)));
      Float z[Lanes::kVectors];
      if constexpr (is_lattice(kDistribution)) {
        draw_lattice<domain_of(kDistribution), Lanes>(
            lattice_, row.words, column, keys_, {seed_, row.image, row.sample, first + done}, z);
      } else {
        draw<kDistribution, Lanes>(row.words, column, keys_, z);
      }
      for (int v = 0; v < Lanes::kVectors; ++v) emit(done + v * Lanes::kFloats, z[v]);
    }
  }

 private:
  uint64_t seed_;
  Lattice lattice_;
  PhiloxKey key_;
  PhiloxKeys<Lanes> keys_;
};

// mean and std of elements [first, first + count) of one image, 0 and 1 where absent.
template <class T>
void load_normalization(const NoiseArgs& args, int64_t image, int64_t first, int64_t count, T* mean,
                        T* std) {
  for (int64_t i = 0; i < count; ++i) mean[i] = T(0), std[i] = T(1);
  if (args.mean.data) load_elements(args.mean, image, 0, first, count, mean);
  if (args.std.data) load_elements(args.std, image, 0, first, count, std);
}

// What turns noise into outputs, for a tile of elements of one image: loaded once, then run for
// each sample. The affine distributions: out = fma(scale, z, base).
template <class T, Distribution kDistribution>
class Epilogue {
 public:
  explicit Epilogue(const NoiseArgs& args) : args_(args) {}

  // Elements [first, first + count) of the image go to [to, to + count) of the tile.
  void load(int64_t image, int64_t first, int64_t count, int64_t to) {
    T mean[kTileElements], std[kTileElements];
    T *const base = base_ + to, *const scale = scale_ + to;
    load_elements(args_.x, image, 0, first, count, base);
    if (args_.sigma.data) {
      load_elements(args_.sigma, image, 0, first, count, scale);
    } else {
      for (int64_t i = 0; i < count; ++i) scale[i] = static_cast<T>(args_.sigma_value);
    }
    if (!args_.mean.data && !args_.std.data) return;
    load_normalization(args_, image, first, count, mean, std);
    for (int64_t i = 0; i < count; ++i) {
      base[i] = affine_base(base[i], mean[i], std[i]);
      scale[i] = scale[i] / std[i];
    }
  }
  void start_sample(int64_t) {}

  template <class L>
  RC_HOST_DEVICE typename L::Float run(int64_t i, typename L::Float z) const {
    return L::fma(L::load(scale_ + i), z, L::load(base_ + i));
  }

 private:
  const NoiseArgs& args_;
  T base_[kTileElements + kPad], scale_[kTileElements + kPad];
};

// The others: out = fma(gain, value(x, z), shift).
template <class T, Distribution kDistribution>
  requires(!is_affine(kDistribution))
class Epilogue<T, kDistribution> {
  using Value = ValueOf<T, kDistribution>;

 public:
  explicit Epilogue(const NoiseArgs& args) : args_(args), value_(Value::make(args)) {}

  void load(int64_t image, int64_t first, int64_t count, int64_t to) {
    T mean[kTileElements], std[kTileElements];
    load_elements(args_.x, image, 0, first, count, x_ + to);
    load_normalization(args_, image, first, count, mean, std);
    for (int64_t i = 0; i < count; ++i) {
      Value::prepare(args_, mean[i], std[i], x_[to + i], gain_[to + i], shift_[to + i]);
    }
  }
  void start_sample(int64_t sample) {
    value_.start_sample(sample);
  }

  template <class L>
  RC_HOST_DEVICE typename L::Float run(int64_t i, typename L::Float z) const {
    const auto v = value_.template value<L>(L::load(x_ + i), z);
    return L::fma(L::load(gain_ + i), v, L::load(shift_ + i));
  }

 private:
  const NoiseArgs& args_;
  Value value_;
  T x_[kTileElements + kPad], gain_[kTileElements + kPad], shift_[kTileElements + kPad];
};

// The path that has to be fast: float32, logical order. Vectors go straight to the output.
template <Distribution kDistribution>
void write_row(const NoiseRun<kDistribution>& noise,
               const typename NoiseRun<kDistribution>::Row& row, int64_t first, int64_t count,
               const Epilogue<float, kDistribution>& epilogue, int64_t at, float* out) {
  const int64_t whole = count / Lanes::kElements * Lanes::kElements;
  noise(row, first, whole, [&](int64_t i, Float z) {
    Lanes::store(out + i, epilogue.template run<Lanes>(at + i, z));
  });
  if (whole == count) return;
  float tail[kPad];
  noise(row, first + whole, count - whole, [&](int64_t i, Float z) {
    Lanes::store(tail + i, epilogue.template run<Lanes>(at + whole + i, z));
  });
  for (int64_t i = whole; i < count; ++i) out[i] = tail[i - whole];
}

// Writes the outputs of a tile, sample by sample.
template <class Out, Distribution kDistribution>
class TileWriter {
  using T = Arithmetic<Out>;
  using Row = typename NoiseRun<kDistribution>::Row;

 public:
  explicit TileWriter(const NoiseArgs& args)
      : args_(args),
        pixels_(args.elements / args.channels),
        image0_(first_image(args.stream)),
        sample0_(first_sample(args.stream)),
        noise_(args.stream, args.lattice),
        epilogue_(args) {}

  void operator()(const SampleTile& tile) {
    for (int64_t c = 0; c < tile.channels; ++c) {
      epilogue_.load(tile.image, first(tile, c), tile.pixels, c * tile.pixels);
    }
    for (int64_t s = tile.sample; s < tile.samples; ++s) {
      epilogue_.start_sample(sample0_ + s);
      // Thresholds in turn: one offset an element, the same for every image and sample.
      const bool in_turn = kDistribution == Distribution::kSplitting && args_.levels > 0;
      const auto row = in_turn ? noise_.row(0, 0) : noise_.row(image0_ + tile.image, sample0_ + s);
      Out* out = static_cast<Out*>(args_.out) + (tile.image * args_.samples + s) * args_.elements;
      for (int64_t c = 0; c < tile.channels; ++c) write_channel(tile, c, row, out);
    }
  }

 private:
  int64_t first(const SampleTile& tile, int64_t c) const {
    return (tile.channel + c) * pixels_ + tile.pixel;
  }

  RC_HOST_DEVICE void write_channel(const SampleTile& tile, int64_t c, const Row& row, Out* out) {
    const int64_t first = this->first(tile, c), at = c * tile.pixels;
    if constexpr (sizeof(Out) == sizeof(float)) {
      if (args_.channels == 1) {
        return write_row(noise_, row, first, tile.pixels, epilogue_, at, out + first);
      }
    }
    using One = OneLane<T>;
    const int64_t lead = first % 4;  // a channel may start inside a Philox counter
    noise_(row, first - lead, lead + tile.pixels,
           [&](int64_t i, Float v) { Lanes::store(z_ + i, v); });
    Out* to = out + tile.pixel * args_.channels + tile.channel + c;
    for (int64_t i = 0; i < tile.pixels; ++i) {
      const T v = epilogue_.template run<One>(at + i, static_cast<T>(z_[lead + i]));
      to[i * args_.channels] = convert<Out>(v);
    }
  }

  const NoiseArgs& args_;
  const int64_t pixels_, image0_, sample0_;
  NoiseRun<kDistribution> noise_;
  Epilogue<T, kDistribution> epilogue_;
  float z_[kTileElements + 4 + kPad];
};

template <class T, Distribution kDistribution>
void sums_units(const SumsArgs& args, int64_t begin, int64_t end) {
  const NoiseRun<kDistribution> noise(args.stream);
  const int64_t tiles = ceil_div(args.elements, kSumsTile);
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / tiles, first = unit % tiles * kSumsTile;
    const int64_t count = first + kSumsTile < args.elements ? kSumsTile : args.elements - first;
    T g[kSumsTile], sum[kSumsTile] = {}, noise_sum[kSumsTile] = {};
    float z[kSumsTile + kPad];
    for (int64_t run = 0; run < args.samples; run += kSumRun) {
      const int64_t run_end = run + kSumRun < args.samples ? run + kSumRun : args.samples;
      T part[kSumsTile] = {}, noise_part[kSumsTile] = {};
      for (int64_t s = run; s < run_end; ++s) {
        load_elements(args.grad, image, s, first, count, g);
        for (int64_t i = 0; i < count; ++i) part[i] += g[i];
        if (!args.noise_sum) continue;
        noise(noise.row(image0 + image, sample0 + s), first, count,
              [&](int64_t i, Float v) { Lanes::store(z + i, v); });
        for (int64_t i = 0; i < count; ++i) {
          noise_part[i] = fused_multiply_add(g[i], static_cast<T>(z[i]), noise_part[i]);
        }
      }
      for (int64_t i = 0; i < count; ++i) sum[i] += part[i], noise_sum[i] += noise_part[i];
    }
    const int64_t at = image * args.elements + first;
    memcpy(static_cast<T*>(args.sum) + at, sum, count * sizeof(T));
    if (args.noise_sum) {
      memcpy(static_cast<T*>(args.noise_sum) + at, noise_sum, count * sizeof(T));
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(noise)(const NoiseArgs& args, int64_t begin, int64_t end) {
  const SampleTiling tiling = noise_tiling(args);
  dispatch(args.out_dtype, [&](auto tag) {
    for_distribution(args.distribution, [&](auto distribution) {
      TileWriter<decltype(tag), distribution()> write(args);
      for (int64_t unit = begin; unit < end; ++unit) write(tiling.tile(unit));
    });
  });
}

void RC_VARIANT(sums)(const SumsArgs& args, int64_t begin, int64_t end) {
  for_affine(args.distribution, [&](auto distribution) {
    if (args.grad.dtype == DType::kFloat64) {
      sums_units<double, distribution()>(args, begin, end);
    } else {
      sums_units<float, distribution()>(args, begin, end);
    }
  });
}

}  // namespace robustcore::smoothing
