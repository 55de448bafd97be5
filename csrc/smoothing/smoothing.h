// Smoothing: the noise stream, the arguments of its kernels, and the arithmetic both devices run.
//
// The stream, version 1; it never changes within a major version. The noise of element e of sample
// s of image i under `seed` comes from output e % 4 of Philox4x32-10 with
//   key     = (low, high) words of seed
//   counter = (e / 4, low word of s, low word of i, domain << 24 | bits 32..39 of s << 16 |
//   bits 32..47 of i)
// by the transform of the distribution, whose number is the domain. Gaussian: box_muller
// (common/math.h), words (0, 1) -> outputs (0, 1), (2, 3) -> (2, 3). The others turn each word into
// one output, see `transform`. It is a float32 for every dtype, layout, device and batch.
#pragma once

#include "common/math.h"
#include "common/philox.h"
#include "common/strided.h"

namespace robustcore::smoothing {

// A distribution is also the domain that keeps its stream apart (counter word 3, top byte).
enum class Distribution : int32_t { kGaussian, kUniform, kLaplace, kSplitting };
// The streams of ablations: see ablation.h.
constexpr uint32_t kAblationDomain = 4, kAblationRetryDomain = 5;

constexpr int64_t kMaxElements = int64_t{1} << 34;
constexpr int64_t kMaxSamples = int64_t{1} << 40;
constexpr int64_t kMaxImages = int64_t{1} << 48;

struct Stream {
  uint64_t seed;
  int64_t image_offset, sample_offset;
  // Added to the offsets when not null; on the op's device, so that a CUDA graph can advance them.
  const int64_t *image_offset_ptr, *sample_offset_ptr;
};

// out[b, s, e] = (x + sigma * z - mean) / std, or for splitting (split(x) - mean) / std
struct NoiseArgs {
  Distribution distribution;
  int64_t images, samples, elements;
  Stream stream;
  StridedView x, sigma, mean, std;  // sigma.data null: sigma_value; mean, std null: 0, 1
  double sigma_value;               // for splitting half of the interval of thresholds
  int64_t levels;  // splitting: 0 at random, else the number of thresholds, in turn
  void*
      out;  // [images, samples, elements], or with channels > 1 [images, samples, pixels, channels]
  DType out_dtype;
  int64_t channels;  // 1: elements lie in logical order
};

// sum[b, e] = sum over s of grad[b, s, e]; noise_sum[b, e] = sum over s of grad[b, s, e] * z[b, s,
// e]. The order of addition is fixed: samples in runs of kSumRun, then the runs in order.
constexpr int64_t kSumRun = 32;
struct SumsArgs {
  Distribution distribution;
  int64_t images, samples, elements;
  Stream stream;
  StridedView grad;
  void *sum,
      *noise_sum;  // [images, elements], float64 if grad is, else float32; noise_sum may be null
};

// counts[b, argmax_k logits[b, s, k]] += 1; the lowest k wins a tie, a NaN anywhere in the row
// withholds its vote.
struct VotesArgs {
  int64_t images, samples, classes;
  StridedView logits;
  int64_t* counts;  // [images, classes]; the launcher zeroes it
};

inline namespace RC_ISA {

RC_HOST_DEVICE int64_t first_image(const Stream& stream) {
  return stream.image_offset + (stream.image_offset_ptr ? *stream.image_offset_ptr : 0);
}
RC_HOST_DEVICE int64_t first_sample(const Stream& stream) {
  return stream.sample_offset + (stream.sample_offset_ptr ? *stream.sample_offset_ptr : 0);
}

// Offsets on the device cannot be checked on the host; the masks keep an index that is out of range
// inside its own field.
RC_HOST_DEVICE PhiloxRow stream_row(const PhiloxKey& key, uint32_t domain, int64_t image,
                                    int64_t sample) {
  const uint32_t sample_high = static_cast<uint32_t>(sample >> 32) & 0xFFu;
  const uint32_t image_high = static_cast<uint32_t>(image >> 32) & 0xFFFFu;
  return philox_row(key, static_cast<uint32_t>(sample), static_cast<uint32_t>(image),
                    domain << 24 | sample_high << 16 | image_high);
}

// One word of the stream turned to noise: uniform on [-1, 1] with centred steps of 2^-31; Laplace
// of scale 1 by inversion, the top bit its sign, |z| < 22.2; the threshold of splitting on [0, 1].
template <Distribution kDistribution, class L>
RC_HOST_DEVICE typename L::Float transform(typename L::Uint word) {
  using Float = typename L::Float;
  using Int = typename L::Int;
  using Uint = typename L::Uint;
  if constexpr (kDistribution == Distribution::kUniform) {
    return L::fma(L::from_int(L::template as<Int>(word)), L::splat(0x1p-31f), L::splat(0x1p-32f));
  } else if constexpr (kDistribution == Distribution::kLaplace) {
    const Float u = L::fma(L::from_uint(word << 1), L::splat(0x1p-32f), L::splat(0x1p-32f));
    const Float magnitude = L::splat(0.5f) * neg_two_log<L>(u);
    return L::template as<Float>(L::template as<Uint>(magnitude) ^ (word & 0x80000000u));
  } else {
    return L::fma(L::from_uint(word), L::splat(0x1p-32f), L::splat(0x1p-33f));
  }
}

// Philox words as lanes in element order, pair by pair or word by word.
template <class L, class Pair>
RC_HOST_DEVICE void words_in_order(const PhiloxRow& row, const PhiloxColumn<L>& column,
                                   const typename L::Word (&keys)[kPhiloxRounds][2],
                                   typename L::Float (&z)[L::kVectors], const Pair& pair) {
  typename L::Word words[4];
  philox_from_row<L>(row, column, keys, words);
  L::normals(words, z, pair);
}

// One step of the stream: the noise of L::kElements elements, in element order.
template <Distribution kDistribution, class L>
RC_HOST_DEVICE void draw(const PhiloxRow& row, const PhiloxColumn<L>& column,
                         const typename L::Word (&keys)[kPhiloxRounds][2],
                         typename L::Float (&z)[L::kVectors]) {
  using Float = typename L::Float;
  using Uint = typename L::Uint;
  words_in_order<L>(row, column, keys, z, [](Uint r, Uint t, Float& a, Float& b) {
    if constexpr (kDistribution == Distribution::kGaussian) {
      box_muller<L>(r, t, a, b);
    } else {
      a = transform<kDistribution, L>(r), b = transform<kDistribution, L>(t);
    }
  });
}

// Calls body with the distribution as a constant.
template <class Body>
RC_HOST_DEVICE void for_affine(Distribution distribution, const Body& body) {
  using enum Distribution;
  if (distribution == kGaussian) return body(std::integral_constant<Distribution, kGaussian>{});
  if (distribution == kUniform) return body(std::integral_constant<Distribution, kUniform>{});
  return body(std::integral_constant<Distribution, kLaplace>{});
}
template <class Body>
RC_HOST_DEVICE void for_distribution(Distribution distribution, const Body& body) {
  using enum Distribution;
  if (distribution != kSplitting) return for_affine(distribution, body);
  return body(std::integral_constant<Distribution, kSplitting>{});
}

// The affine epilogue, split so that everything that does not depend on the sample is done once:
// out = fma(scale, z, base) with base = (x - mean) / std and scale = sigma / std.
template <class T>
RC_HOST_DEVICE T affine_base(T x, T mean, T std) {
  return (x - mean) / std;
}
RC_HOST_DEVICE float fused_multiply_add(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
RC_HOST_DEVICE double fused_multiply_add(double a, double b, double c) {
  return ::fma(a, b, c);
}

// Splitting noise (Levine and Feizi, "Improved, deterministic smoothing for L1 certified
// robustness", 2021): x is cut at the thresholds s + j * width, and the middle of the piece of [0,
// 1] it falls into is its value, (min(c, 1) + max(c - width, 0)) / 2 with c the next threshold. At
// random s = width * u. In turn, s = (2 ((offset + sample) mod levels) + 1) / 510 with an offset of
// the element's own and 8-bit x; everything is then in units of 1/510 and an integer below 2^24, so
// exact in float32.
template <class T>
struct Split {
  T width, inverse, top, levels, index;  // levels 0: at random

  // The threshold s of z.
  template <class L>
  RC_HOST_DEVICE typename L::Float threshold(typename L::Float z) const {
    if (levels == T(0)) return L::splat(width) * z;
    const auto zero = L::splat(T(0)), one = L::splat(T(1)), last = L::splat(levels - T(1));
    const auto offset = L::min(zero - L::ceil(zero - L::splat(levels) * z), last);
    const auto turn = offset + L::splat(index);
    const auto wraps = L::min(L::max(turn - last, zero), one);
    return L::fma(L::splat(T(2)), L::fma(zero - L::splat(levels), wraps, turn), one);
  }
  // Twice the value, in units of 1 / top.
  template <class L>
  RC_HOST_DEVICE typename L::Float operator()(typename L::Float x, typename L::Float s) const {
    const auto w = L::splat(width), zero = L::splat(T(0));
    const auto k = L::ceil((x - s) * L::splat(inverse));
    const auto above = L::min(L::fma(k, w, s), L::splat(top));
    return above + L::max(L::fma(k - L::splat(T(1)), w, s), zero);
  }
};

template <class T>
RC_HOST_DEVICE Split<T> make_split(const NoiseArgs& args) {
  if (args.levels > 0) {
    const T width = static_cast<T>(2 * args.levels);
    return {width, T(1) / width, T(510), static_cast<T>(args.levels), T(0)};
  }
  const T width = static_cast<T>(2 * args.sigma_value);
  return {width, T(1) / width, T(1), T(0), T(0)};
}

// What of splitting does not depend on the sample: x in the split's units, and the gain and shift
// of out = fma(gain, split(x), shift).
template <class T>
RC_HOST_DEVICE void prepare_split(const NoiseArgs& args, T mean, T std, T& x, T& gain, T& shift) {
  const bool in_turn = args.levels > 0;
  if (in_turn) x = T(2) * (sizeof(T) == 8 ? ::rint(T(255) * x) : ::rintf(T(255) * x));
  gain = T(1) / (in_turn ? T(1020) * std : T(2) * std);
  shift = -mean / std;
}

}  // namespace RC_ISA
}  // namespace robustcore::smoothing
