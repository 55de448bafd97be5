// Noise: its distributions on the counter stream of common/stream.h, the arguments of its kernels,
// and the arithmetic both devices run.
//
// A distribution is a domain of the stream. Gaussian: box_muller (common/math.h) turns words (0, 1)
// into outputs (0, 1) and words (2, 3) into (2, 3). The others turn each word into one output, see
// `transform`. The noise is a float32 for every dtype, layout, device and batch.
#pragma once

#include "common/math.h"
#include "common/stream.h"
#include "common/strided.h"
#include "common/variants.h"
#include "smoothing/lattice.h"
#include "smoothing/samples.h"

namespace robustcore::smoothing {

enum class Distribution : int32_t {
  kGaussian = static_cast<int32_t>(Domain::kGaussian),
  kUniform = static_cast<int32_t>(Domain::kUniform),
  kLaplace = static_cast<int32_t>(Domain::kLaplace),
  kSplitting = static_cast<int32_t>(Domain::kSplitting),
  kLatticeGaussian = static_cast<int32_t>(Domain::kLatticeGaussian),
  kLatticeUniform = static_cast<int32_t>(Domain::kLatticeUniform),
  kLatticeLaplace = static_cast<int32_t>(Domain::kLatticeLaplace),
};

constexpr bool is_lattice(Distribution distribution) {
  return distribution >= Distribution::kLatticeGaussian;
}
// Out of the image and one number a sample: fma(scale, z, base), or else gain and shift as well.
constexpr bool is_affine(Distribution distribution) {
  return distribution < Distribution::kSplitting;
}

// out[b, s, e] = (x + sigma * z - mean) / std, for splitting (split(x) - mean) / std, on a lattice
// ((round(grid x) refine + N) / (grid refine) - mean) / std
struct NoiseArgs {
  Distribution distribution;
  int64_t images, samples, elements;
  Stream stream;
  StridedView x, sigma, mean, std;  // sigma.data null: sigma_value; mean, std null: 0, 1
  double sigma_value;               // for splitting half of the interval of thresholds
  int64_t levels;  // splitting: 0 at random, else the number of thresholds, in turn
  Lattice lattice;
  // [images, samples, elements], or with channels > 1 [images, samples, pixels, channels]
  void* out;
  DType out_dtype;
  int64_t channels;  // 1: elements lie in logical order
};

// sum[b, e] = sum over s of grad[b, s, e]; noise_sum[b, e] = sum over s of grad[b, s, e] * z[b, s,
// e]. The order of addition is fixed, see kSumRun.
struct SumsArgs {
  Distribution distribution;
  int64_t images, samples, elements;
  Stream stream;
  StridedView grad;
  // [images, elements], float64 if grad is, else float32; noise_sum may be null
  void *sum, *noise_sum;
};

RC_VARIANTS(noise, const NoiseArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(sums, const SumsArgs& args, int64_t begin, int64_t end);
void noise_cuda(const NoiseArgs& args, void* stream);
void sums_cuda(const SumsArgs& args, void* stream);

// Units of the CPU's kernels.
inline int64_t sums_units(const SumsArgs& a) {
  return a.images * ceil_div(a.elements, kSumsTile);
}
inline SampleTiling noise_tiling(const NoiseArgs& a) {
  // Tiles start on a Philox counter where rows do.
  return {a.images, a.samples, a.channels, a.elements / a.channels, a.channels > 1, 4};
}

inline namespace RC_ISA {

RC_HOST_DEVICE constexpr Domain domain_of(Distribution distribution) {
  return static_cast<Domain>(distribution);
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

// One step of the stream: the noise of L::kElements elements, in element order.
template <Distribution kDistribution, class L>
RC_HOST_DEVICE void draw(const PhiloxRow& row, const PhiloxColumn<L>& column,
                         const PhiloxKeys<L>& keys, typename L::Float (&z)[L::kVectors]) {
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
  if (is_affine(distribution)) return for_affine(distribution, body);
  if (distribution == kSplitting) return body(std::integral_constant<Distribution, kSplitting>{});
  if (distribution == kLatticeGaussian) {
    return body(std::integral_constant<Distribution, kLatticeGaussian>{});
  }
  if (distribution == kLatticeUniform) {
    return body(std::integral_constant<Distribution, kLatticeUniform>{});
  }
  return body(std::integral_constant<Distribution, kLatticeLaplace>{});
}

RC_HOST_DEVICE float round_to_even(float v) {
  return ::rintf(v);
}
RC_HOST_DEVICE double round_to_even(double v) {
  return ::rint(v);
}

// The affine epilogue, split so that everything that does not depend on the sample is done once:
// out = fma(scale, z, base) with base = (x - mean) / std and scale = sigma / std.
template <class T>
RC_HOST_DEVICE T affine_base(T x, T mean, T std) {
  return (x - mean) / std;
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

  static RC_HOST_DEVICE Split make(const NoiseArgs& args) {
    if (args.levels > 0) {
      const T width = static_cast<T>(2 * args.levels);
      return {width, T(1) / width, T(510), static_cast<T>(args.levels), T(0)};
    }
    const T width = static_cast<T>(2 * args.sigma_value);
    return {width, T(1) / width, T(1), T(0), T(0)};
  }
  // What does not depend on the sample: x in the split's units, gain and shift of the epilogue.
  static RC_HOST_DEVICE void prepare(const NoiseArgs& args, T mean, T std, T& x, T& gain,
                                     T& shift) {
    const bool in_turn = args.levels > 0;
    if (in_turn) x = T(2) * round_to_even(T(255) * x);
    gain = T(1) / (in_turn ? T(1020) * std : T(2) * std);
    shift = -mean / std;
  }
  RC_HOST_DEVICE void start_sample(int64_t sample) {
    if (levels > T(0)) index = static_cast<T>(sample % static_cast<int64_t>(levels));
  }

  // Twice the value, in units of 1 / top.
  template <class L>
  RC_HOST_DEVICE typename L::Float value(typename L::Float x, typename L::Float z) const {
    const auto w = L::splat(width), zero = L::splat(T(0)), s = threshold<L>(z);
    const auto k = L::ceil((x - s) * L::splat(inverse));
    const auto above = L::min(L::fma(k, w, s), L::splat(top));
    return above + L::max(L::fma(k - L::splat(T(1)), w, s), zero);
  }

 private:
  template <class L>
  RC_HOST_DEVICE typename L::Float threshold(typename L::Float z) const {
    if (levels == T(0)) return L::splat(width) * z;
    const auto zero = L::splat(T(0)), one = L::splat(T(1)), last = L::splat(levels - T(1));
    const auto offset = L::min(zero - L::ceil(zero - L::splat(levels) * z), last);
    const auto turn = offset + L::splat(index);
    const auto wraps = L::min(L::max(turn - last, zero), one);
    return L::fma(L::splat(T(2)), L::fma(zero - L::splat(levels), wraps, turn), one);
  }
};

// Lattice noise: the sample is an integer below 2^24, exact in float32, and the output a function
// of it alone.
template <class T>
struct OnLattice {
  static RC_HOST_DEVICE OnLattice make(const NoiseArgs&) {
    return {};
  }
  static RC_HOST_DEVICE void prepare(const NoiseArgs& args, T mean, T std, T& x, T& gain,
                                     T& shift) {
    const T grid = static_cast<T>(args.lattice.grid), refine = static_cast<T>(args.lattice.refine);
    x = refine * round_to_even(grid * x);
    gain = T(1) / (grid * refine * std);
    shift = -mean / std;
  }
  RC_HOST_DEVICE void start_sample(int64_t) {}

  template <class L>
  RC_HOST_DEVICE typename L::Float value(typename L::Float x, typename L::Float z) const {
    return x + z;
  }
};

// What is not affine: out = fma(gain, value(x, z), shift). The affine ones have no use for it.
template <class T, Distribution kDistribution>
using ValueOf =
    std::conditional_t<kDistribution == Distribution::kSplitting, Split<T>, OnLattice<T>>;

}  // namespace RC_ISA
}  // namespace robustcore::smoothing
