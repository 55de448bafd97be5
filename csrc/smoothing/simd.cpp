#include "smoothing/simd.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

using Word = Lanes::Word;
using Float = Lanes::Float;

// A run may read and write up to one step past its end: buffers carry that much padding.
constexpr int64_t kPad = Lanes::kElements;

}  // namespace
}  // namespace RC_ISA
}  // namespace robustcore::smoothing

#include "smoothing/ablation_simd.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

// The noise of one seed, row by row.
template <Distribution kDistribution>
class NoiseRun {
 public:
  explicit NoiseRun(uint64_t seed) : key_(philox_key(seed)) {
    for (int r = 0; r < kPhiloxRounds; ++r) {
      keys_[r][0] = Lanes::word(key_.k0[r]);
      keys_[r][1] = Lanes::word(key_.k1[r]);
    }
  }

  PhiloxRow row(int64_t image, int64_t sample) const {
    return stream_row(key_, static_cast<uint32_t>(kDistribution), image, sample);
  }

  // Calls emit(offset, vector) for elements first, first + 1, ... until `count` are covered;
  // `first` is a multiple of 4.
  template <class Emit>
  RC_HOST_DEVICE void operator()(const PhiloxRow& row, int64_t first, int64_t count,
                                 const Emit& emit) const {
    for (int64_t done = 0; done < count; done += Lanes::kElements) {
      const auto counter = Lanes::counters(static_cast<uint32_t>((first + done) / 4));
      Float z[Lanes::kVectors];
      draw<kDistribution, Lanes>(row, philox_column<Lanes>(counter), keys_, z);
      for (int v = 0; v < Lanes::kVectors; ++v) emit(done + v * Lanes::kFloats, z[v]);
    }
  }

 private:
  PhiloxKey key_;
  Word keys_[kPhiloxRounds][2];
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
    T mean[kNoiseTile], std[kNoiseTile];
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
  T base_[kNoiseTile + kPad], scale_[kNoiseTile + kPad];
};

// Splitting: out = fma(gain, split(x, threshold of z), shift).
template <class T>
class Epilogue<T, Distribution::kSplitting> {
 public:
  explicit Epilogue(const NoiseArgs& args) : args_(args), split_(make_split<T>(args)) {}

  void load(int64_t image, int64_t first, int64_t count, int64_t to) {
    T mean[kNoiseTile], std[kNoiseTile];
    load_elements(args_.x, image, 0, first, count, x_ + to);
    load_normalization(args_, image, first, count, mean, std);
    for (int64_t i = 0; i < count; ++i) {
      prepare_split(args_, mean[i], std[i], x_[to + i], gain_[to + i], shift_[to + i]);
    }
  }
  void start_sample(int64_t sample) {
    if (args_.levels > 0) split_.index = static_cast<T>(sample % args_.levels);
  }

  template <class L>
  RC_HOST_DEVICE typename L::Float run(int64_t i, typename L::Float z) const {
    const auto v = split_.template operator()<L>(L::load(x_ + i), split_.template threshold<L>(z));
    return L::fma(L::load(gain_ + i), v, L::load(shift_ + i));
  }

 private:
  const NoiseArgs& args_;
  Split<T> split_;
  T x_[kNoiseTile + kPad], gain_[kNoiseTile + kPad], shift_[kNoiseTile + kPad];
};

// The path that has to be fast: float32, logical order. Vectors go straight to the output.
template <Distribution kDistribution>
void write_row(const NoiseRun<kDistribution>& noise, const PhiloxRow& row, int64_t first,
               int64_t count, const Epilogue<float, kDistribution>& epilogue, int64_t at,
               float* out) {
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

template <class Out, Distribution kDistribution>
void noise_units(const NoiseArgs& args, int64_t begin, int64_t end) {
  using T = Arithmetic<Out>;
  using One = std::conditional_t<std::is_same_v<T, double>, ScalarDouble, Scalar>;
  const NoiseTiling tiling(args);
  const NoiseRun<kDistribution> noise(args.stream.seed);
  const int64_t pixels = args.elements / args.channels;
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream);
  const bool in_turn = kDistribution == Distribution::kSplitting && args.levels > 0;
  Epilogue<T, kDistribution> epilogue(args);
  float z[kNoiseTile + 4 + kPad];

  for (int64_t unit = begin; unit < end; ++unit) {
    int64_t u = unit;
    const int64_t s_begin = u % tiling.sample_chunks * kNoiseSamples;
    u /= tiling.sample_chunks;
    const int64_t p_begin = u % tiling.pixel_tiles * tiling.pixels;
    u /= tiling.pixel_tiles;
    const int64_t c_begin = u % tiling.channel_tiles * tiling.channels;
    const int64_t image = u / tiling.channel_tiles;
    const int64_t s_end =
        s_begin + kNoiseSamples < args.samples ? s_begin + kNoiseSamples : args.samples;
    const int64_t p_count = p_begin + tiling.pixels < pixels ? tiling.pixels : pixels - p_begin;
    const int64_t c_end =
        c_begin + tiling.channels < args.channels ? c_begin + tiling.channels : args.channels;

    for (int64_t c = c_begin; c < c_end; ++c) {
      epilogue.load(image, c * pixels + p_begin, p_count, (c - c_begin) * tiling.pixels);
    }
    for (int64_t s = s_begin; s < s_end; ++s) {
      epilogue.start_sample(sample0 + s);
      // Thresholds in turn: one offset an element, the same for every image and sample.
      const PhiloxRow row = in_turn ? noise.row(0, 0) : noise.row(image0 + image, sample0 + s);
      Out* out = static_cast<Out*>(args.out) + (image * args.samples + s) * args.elements;
      for (int64_t c = c_begin; c < c_end; ++c) {
        const int64_t first = c * pixels + p_begin, at = (c - c_begin) * tiling.pixels;
        if constexpr (sizeof(Out) == sizeof(float)) {
          if (args.channels == 1) {
            write_row(noise, row, first, p_count, epilogue, at, out + first);
            continue;
          }
        }
        const int64_t lead = first % 4;  // a channel may start inside a Philox counter
        noise(row, first - lead, lead + p_count,
              [&](int64_t i, Float v) { Lanes::store(z + i, v); });
        Out* to = out + p_begin * args.channels + c;
        for (int64_t i = 0; i < p_count; ++i) {
          const T v = epilogue.template run<One>(at + i, static_cast<T>(z[lead + i]));
          to[i * args.channels] = convert<Out>(v);
        }
      }
    }
  }
}

void noise(const NoiseArgs& args, int64_t begin, int64_t end) {
  dispatch(args.out_dtype, [&](auto tag) {
    for_distribution(args.distribution, [&](auto distribution) {
      noise_units<decltype(tag), distribution()>(args, begin, end);
    });
  });
}

template <class T, Distribution kDistribution>
void sums_units_of(const SumsArgs& args, int64_t begin, int64_t end) {
  const NoiseRun<kDistribution> noise(args.stream.seed);
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

void sums(const SumsArgs& args, int64_t begin, int64_t end) {
  for_affine(args.distribution, [&](auto distribution) {
    if (args.grad.dtype == DType::kFloat64) {
      sums_units_of<double, distribution()>(args, begin, end);
    } else {
      sums_units_of<float, distribution()>(args, begin, end);
    }
  });
}

// Index of the first maximum of a row, or -1 if the row holds a NaN.
int64_t argmax(const float* row, int64_t n) {
  constexpr int64_t w = Lanes::kFloats;
  const auto load = [&](int64_t i) {
    return n - i >= w ? Lanes::load(row + i)
                      : Lanes::load_partial(row + i, static_cast<int>(n - i));
  };
  Float best = Lanes::splat(-INFINITY);
  uint32_t nan = 0;
  for (int64_t i = 0; i < n; i += w) {
    const Float v = load(i);
    nan |= Lanes::nan_mask(v);
    best = Lanes::max(best, v);
  }
  if (nan) return -1;
  const Float maximum = Lanes::splat(Lanes::reduce_max(best));
  for (int64_t i = 0;; i += w) {
    if (const uint32_t hit = Lanes::equal_mask(load(i), maximum)) return i + __builtin_ctz(hit);
  }
}

// The same for a row of at most two vectors, without a branch: rows then overlap in the pipeline.
RC_HOST_DEVICE int64_t argmax_narrow(const float* row, int n) {
  constexpr int w = Lanes::kFloats;
  const int n0 = n < w ? n : w;
  const Float v0 = Lanes::load_partial(row, n0), v1 = Lanes::load_partial(row + n0, n - n0);
  const Float maximum = Lanes::splat(Lanes::reduce_max(Lanes::max(v0, v1)));
  const uint64_t hit =
      Lanes::equal_mask(v0, maximum) | static_cast<uint64_t>(Lanes::equal_mask(v1, maximum)) << w;
  const bool nan = Lanes::nan_mask(v0) | Lanes::nan_mask(v1);
  return nan ? -1 : __builtin_ctzll(hit | uint64_t{1} << 63);
}

// The same for any dtype and stride, in the row's own precision.
template <class T>
int64_t argmax_strided(const StridedView& view, int64_t image, int64_t sample, int64_t n) {
  constexpr int64_t kChunk = 256;
  T values[kChunk], best = -INFINITY;
  int64_t best_at = 0;
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t count = first + kChunk < n ? kChunk : n - first;
    load_elements(view, image, sample, first, count, values);
    for (int64_t i = 0; i < count; ++i) {
      if (values[i] != values[i]) return -1;
      if (values[i] > best) best = values[i], best_at = first + i;
    }
  }
  return best_at;
}

// Calls count(k) with the vote of each row in [first, last); k = -1 is a vote withheld.
template <class Count>
RC_HOST_DEVICE void for_each_vote(const VotesArgs& args, int64_t image, int64_t first, int64_t last,
                                  const Count& count) {
  const StridedView& v = args.logits;
  const int64_t n = args.classes;
  if (v.dtype == DType::kFloat32 && v.strides[0] == 1) {
    const float* rows = static_cast<const float*>(v.data) + image * v.image_stride;
    if (n <= 2 * Lanes::kFloats) {
      const int narrow = static_cast<int>(n);
      for (int64_t s = first; s < last; ++s)
        count(argmax_narrow(rows + s * v.sample_stride, narrow));
    } else {
      for (int64_t s = first; s < last; ++s) count(argmax(rows + s * v.sample_stride, n));
    }
  } else if (v.dtype == DType::kFloat64) {
    for (int64_t s = first; s < last; ++s) count(argmax_strided<double>(v, image, s, n));
  } else {
    for (int64_t s = first; s < last; ++s) count(argmax_strided<float>(v, image, s, n));
  }
}

void votes(const VotesArgs& args, int64_t begin, int64_t end) {
  // Few classes collide often, so they are counted locally first; with many, a shared increment
  // costs nothing beside the row. Integer addition commutes: the order of threads cannot show.
  constexpr int64_t kLocal = 1024;
  const int64_t units = ceil_div(args.samples, kVotesRows);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / units, first = unit % units * kVotesRows;
    const int64_t last = first + kVotesRows < args.samples ? first + kVotesRows : args.samples;
    int64_t* counts = args.counts + image * args.classes;
    const auto add = [&](int64_t k, int64_t n) {
      __atomic_fetch_add(counts + k, n, __ATOMIC_RELAXED);
    };
    if (args.classes <= kLocal) {
      int64_t local[kLocal + 1];  // slot 0 takes the votes withheld
      memset(local, 0, (args.classes + 1) * sizeof(int64_t));
      for_each_vote(args, image, first, last, [&](int64_t k) { ++local[k + 1]; });
      for (int64_t k = 0; k < args.classes; ++k) {
        if (local[k + 1]) add(k, local[k + 1]);
      }
    } else {
      for_each_vote(args, image, first, last, [&](int64_t k) {
        if (k >= 0) add(k, 1);
      });
    }
  }
}

}  // namespace
}  // namespace RC_ISA

const SimdKernels RC_CONCAT(simd_, RC_ISA) = {noise,       sums,   votes,    pixel_masks,
                                              patch_masks, select, kept_sums};

}  // namespace robustcore::smoothing
