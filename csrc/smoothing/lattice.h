// Noise on a lattice: integers N with the exact distribution of a rounded real, so that a sample of
// an image on the lattice is an integer too and a certificate holds in exact arithmetic (Voracek
// and Hein, "Sound randomized smoothing in floating-point arithmetics", 2023).
//
// Version 1 of its streams; it never changes within a major version. The word of an element (domain
// kLatticeGaussian, ...) gives the sign, its top bit, and 31 bits of a uniform V in [0, 1). |N| is
// the number of thresholds at or below V: threshold k is P(|N| <= k) in units of 2^-95. Where 31
// bits do not decide, 64 more do: the words of the same element in kLatticeMiddle and kLatticeLow.
#pragma once

#include "common/math.h"
#include "common/stream.h"
#include "common/variants.h"

namespace robustcore::smoothing {

struct Lattice {
  const int32_t* thresholds;  // [count, 3]: bits 64 to 95, 32 to 63, 0 to 31
  int64_t count;
  float spread;  // standard deviation, scale or half width of the noise in steps
  // An image's value x is the integer round(grid x); one of them is `refine` steps.
  double grid, refine;
};

// Tries the 2^31 values that 31 bits of V can have: adds up where the float approximation leaves
// the decision to the thresholds, and where either decides wrongly. A unit is 2^20 of them.
struct LatticeCheckArgs {
  Domain domain;
  Lattice lattice;
  int64_t first;  // unit
  int64_t *unsure, *wrong;
};
constexpr int64_t kLatticeCheckUnits = int64_t{1} << 11;
RC_VARIANTS(lattice_check, const LatticeCheckArgs& args, int64_t begin, int64_t end);

// Where in the streams a run of elements is.
struct LatticePlace {
  uint64_t seed;
  int64_t image, sample;
  int64_t element;  // of the first
};

inline namespace RC_ISA {

// One lane for numbers no bit of which is promised: without an fma where that is a call.
#if defined(__CUDACC__) || defined(__FP_FAST_FMAF)
using Approximate = Scalar;
#else
struct Approximate : Scalar {
  static RC_HOST_DEVICE Float fma(Float a, Float b, Float c) {
    return a * b + c;
  }
};
#endif

// Quantiles of |Z| / unit in float32, of 1 - V = (steps + 1/2) / 2^31. Half a bucket of V included,
// they err by at most relative * quantile + absolute where steps >= least. Proven for each variant
// by trying all 2^31 buckets (lattice_check), so no bit of theirs is promised.
struct Bounds {
  float relative, absolute, least;
};
template <Domain kDomain>
struct Quantile;

template <class L>
RC_HOST_DEVICE typename L::Float steps_of(typename L::Uint word) {
  return L::from_int(L::template as<typename L::Int>(~word & 0x7FFFFFFFu));
}
template <class L>
RC_HOST_DEVICE typename L::Float tail_of(typename L::Uint word) {
  return L::fma(steps_of<L>(word), L::splat(0x1p-31f), L::splat(0x1p-32f));
}

// Z standard normal: Phi^-1((1 + v) / 2) = v P(-2 ln(1 - v^2)), P a minimax polynomial of relative
// error 9.7e-7. Where a table fits into two vectors, a polynomial for each half of a power of two
// instead: no logarithm is needed.
template <>
struct Quantile<Domain::kLatticeGaussian> {
  static constexpr float unit = 1.0f;
  template <class L>
  static constexpr bool tabled = L::kFloats == 16;
  template <class L>
  static constexpr Bounds bounds =
      tabled<L> ? Bounds{1.5e-6f, 1.3e-6f, 0.0f} : Bounds{2.5e-6f, 2.5e-7f, 137440.0f};

  template <class L>
  static RC_HOST_DEVICE typename L::Float of(typename L::Uint word) {
    if constexpr (tabled<L>) {
      return by_table<L>(word);
    } else {
      constexpr float c[] = {2.29603362f,      0.170860484f,    -0.002027618f,
                             -0.00014830727f,  1.71230058e-05f, -5.22882317e-07f,
                             -3.57245078e-08f, 3.66671915e-09f, -9.61489846e-11f};
      const auto tail = tail_of<L>(word);
      const auto w = neg_two_log<L>(tail * (L::splat(2.0f) - tail));
      return (L::splat(1.0f) - tail) * horner<L>(w - L::splat(6.0f), c);
    }
  }

 private:
  // [power of (mantissa - 5/4)][exponent field and first bit of the mantissa, mod 32]: the halves
  // of 2^17 to 2^31. Below, where steps are too few to tell, a quantile that is never sure.
  template <class L>
  static RC_HOST_DEVICE typename L::Float by_table(typename L::Uint word) {
    alignas(64) static constexpr float c[5][32] = {
        {3.95575237f, 3.87457323f,  3.78681922f,  3.70233631f, 3.61086631f, 3.52265549f,
         3.42697215f, 3.334512f,    3.23399806f,  3.13663554f, 3.03051066f, 2.92741108f,
         2.81466508f, 2.70473266f,  2.58401966f,  2.46577096f, 2.33523321f, 2.20657516f,
         2.06352806f, 1.92135084f,  1.76167059f,  1.60100865f, 1.41779733f, 1.22985876f,
         1.00999033f, 0.776421785f, 0.488776475f, 0.15731065f, 1e9f,        1e9f,
         1e9f,        1e9f},
        {-0.191211611f, -0.139159516f, -0.198847815f, -0.144930795f, -0.207444966f, -0.15145795f,
         -0.217218876f, -0.158918172f, -0.228458896f, -0.16755189f,  -0.241563082f, -0.177694738f,
         -0.257096469f, -0.189831465f, -0.275892138f, -0.204692334f, -0.299237549f, -0.223437101f,
         -0.329245925f, -0.248038828f, -0.369674861f, -0.282182395f, -0.427994192f, -0.333740741f,
         -0.521771848f, -0.423542202f, -0.706130207f, -0.634450376f, 0.0f,          0.0f,
         0.0f,          0.0f},
        {0.072298415f,  0.0375141241f, 0.0748493373f, 0.0388814546f, 0.0776764899f, 0.0404017121f,
         0.0808311775f, 0.0421041623f, 0.0843781456f, 0.044025939f,  0.0883999541f, 0.0462145805f,
         0.0930026397f, 0.048731219f,  0.0983223543f, 0.0516538583f, 0.104530245f,  0.0550778173f,
         0.111823469f,  0.0591008924f, 0.120350808f,  0.0637385696f, 0.129830822f,  0.06848941f,
         0.137458205f,  0.069637306f,  0.121837363f,  0.0316631943f, 0.0f,          0.0f,
         0.0f,          0.0f},
        {-0.0387740359f, -0.0141462656f, -0.0400731675f, -0.0146355089f,
         -0.0415055491f, -0.0151765505f, -0.0430946499f, -0.0157787912f,
         -0.0448697954f, -0.0164540429f, -0.0468680672f, -0.0172173306f,
         -0.0491368845f, -0.0180879664f, -0.0517375134f, -0.0190910082f,
         -0.0547497198f, -0.0202591699f, -0.0582778752f, -0.0216353945f,
         -0.0624603108f, -0.0232783444f, -0.0675045848f, -0.025298629f,
         -0.0740361586f, -0.0283230767f, -0.0890126303f, -0.0452255458f,
         0.0f,           0.0f,           0.0f,           0.0f},
        {0.0232772306f, 0.00601512473f, 0.0240315534f, 0.00621634908f,
         0.024860559f,  0.00643815193f, 0.0257769413f, 0.00668413937f,
         0.0267964415f, 0.00695881387f, 0.0279387925f, 0.00726785744f,
         0.0292290244f, 0.00761852367f, 0.0306991879f, 0.00802016258f,
         0.0323906355f, 0.00848490559f, 0.03435684f,   0.00902849063f,
         0.0366661176f, 0.00967092905f, 0.0394004025f, 0.0104341516f,
         0.0425971597f, 0.0112705976f,  0.0442938097f, 0.00768450508f,
         0.0f,          0.0f,           0.0f,          0.0f}};
    const auto bits =
        L::template as<typename L::Uint>(L::max(steps_of<L>(word), L::splat(0x1p15f)));
    const auto mantissa = (bits & 0x3FFFFFu) | 0x3F800000u;
    const auto t = L::template as<typename L::Float>(mantissa) - L::splat(1.25f);
    auto z = L::lookup(c[4], bits >> 22);
    RC_UNROLL
    for (int i = 3; i >= 0; --i) z = L::fma(z, t, L::lookup(c[i], bits >> 22));
    return z;
  }
};

template <>
struct Quantile<Domain::kLatticeUniform> {
  static constexpr float unit = 0x1p-31f;
  template <class L>
  static constexpr Bounds bounds{0.0f, 2e-7f, 0.0f};

  template <class L>
  static RC_HOST_DEVICE typename L::Float of(typename L::Uint word) {
    return L::from_int(L::template as<typename L::Int>(word & 0x7FFFFFFFu));
  }
};

template <>
struct Quantile<Domain::kLatticeLaplace> {
  static constexpr float unit = 0.5f;
  template <class L>
  static constexpr Bounds bounds{1e-6f, 2e-6f, 0x1p19f};

  template <class L>
  static RC_HOST_DEVICE typename L::Float of(typename L::Uint word) {
    return neg_two_log<L>(tail_of<L>(word));
  }
};

// |N| of the words' low 31 bits, and the lanes where it may be another (as bits of `unsure`).
template <Domain kDomain, class L>
RC_HOST_DEVICE typename L::Float approximate(typename L::Uint word, float spread,
                                             uint32_t& unsure) {
  using Q = Quantile<kDomain>;
  constexpr Bounds bounds = Q::template bounds<L>;
  const auto z = Q::template of<L>(word);
  // size = scale z. Adding 1.5 * 2^23 rounds it to an integer, whose border is as far as the
  // fraction is from 1/2.
  const float unit = Q::unit * spread;
  const auto scale = L::splat(unit), magic = L::splat(0x1.8p23f);
  const auto count = L::fma(scale, z, magic) - magic;
  const auto fraction = L::fma(L::splat(-unit), z, count);
  auto sure = L::splat(0.5f - spread * bounds.absolute);
  if constexpr (bounds.relative > 0) sure = L::fma(L::splat(-bounds.relative * unit), z, sure);
  unsure = L::less_mask(sure, abs<L>(fraction));
  if constexpr (bounds.least > 0) {
    unsure |= L::less_mask(steps_of<L>(word), L::splat(bounds.least));
  }
  return count;
}

// The word of one element in a domain of its own. No index into the four: a GPU's thread keeps them
// in registers then.
RC_HOST_DEVICE uint32_t word_of(Domain domain, const LatticePlace& place) {
  uint32_t words[4];
  stream_words(place.seed, domain, place.image, place.sample,
               static_cast<uint32_t>(place.element / 4), words);
  const int64_t i = place.element % 4;
  return i == 0 ? words[0] : i == 1 ? words[1] : i == 2 ? words[2] : words[3];
}

// Whether V is at or above threshold k.
RC_HOST_DEVICE bool at_or_above(const Lattice& lattice, uint32_t word, int64_t k,
                                const LatticePlace& place) {
  const int32_t* threshold = lattice.thresholds + 3 * k;
  const uint32_t high = word & 0x7FFFFFFFu;
  if (high != static_cast<uint32_t>(threshold[0])) {
    return high > static_cast<uint32_t>(threshold[0]);
  }
  const uint32_t middle = word_of(Domain::kLatticeMiddle, place);
  if (middle != static_cast<uint32_t>(threshold[1])) {
    return middle > static_cast<uint32_t>(threshold[1]);
  }
  return word_of(Domain::kLatticeLow, place) >= static_cast<uint32_t>(threshold[2]);
}

// |N| from the thresholds: from a guess down to one that V reaches, then up to one that it does
// not. One loop for both, because the comparison is long. Any guess will do: far out in the tail
// (steps < least) it may be anything, below 0 too.
RC_HOST_DEVICE int64_t exact_count(const Lattice& lattice, uint32_t word, float guess,
                                   const LatticePlace& place) {
  const float count = static_cast<float>(lattice.count);
  int64_t k = guess > 0.0f ? static_cast<int64_t>(guess < count ? guess : count) : 0;
  bool down = true;
  RC_ROLL
  for (;;) {
    const bool inside = down ? k > 0 : k < lattice.count;
    const bool reached = inside ? at_or_above(lattice, word, down ? k - 1 : k, place) : down;
    if (reached != down) {
      k += down ? -1 : 1;
    } else if (down) {
      down = false;
    } else {
      return k;
    }
  }
}

// The same from what a vector guessed; of a guess beyond the thresholds one lane makes a better
// one.
template <Domain kDomain>
RC_HOST_DEVICE float exact_count_near(const Lattice& lattice, uint32_t word, float guess,
                                      const LatticePlace& place) {
  uint32_t ignored;
  if (guess > static_cast<float>(lattice.count)) {
    guess = approximate<kDomain, Approximate>(word, lattice.spread, ignored);
  }
  return static_cast<float>(exact_count(lattice, word, guess, place));
}

// |N| again for the lanes of `unsure`: some 3 in 10 000, so out of the way of the others.
template <Domain kDomain, class L>
RC_COLD typename L::Float exact_counts(const Lattice& lattice, typename L::Uint word,
                                       typename L::Float count, uint32_t unsure,
                                       const LatticePlace& place) {
  float counts[L::kFloats];
  uint32_t words[L::kFloats];
  L::store(counts, count);
  memcpy(words, &word, sizeof(words));
  for (; unsure; unsure &= unsure - 1) {
    const int i = __builtin_ctz(unsure);
    LatticePlace at = place;
    at.element += i;
    counts[i] = exact_count_near<kDomain>(lattice, words[i], counts[i], at);
  }
  return L::load(counts);
}

// The same of four elements for one lane: the exact count stands once, and picks what it works on
// without an index, so that a GPU's thread keeps all in registers.
template <Domain kDomain>
RC_HOST_DEVICE void noise_of_four(const Lattice& lattice, const LatticePlace& place,
                                  float (&z)[4]) {
  uint32_t words[4], unsure = 0;
  RC_UNROLL
  for (int i = 0; i < 4; ++i) {
    uint32_t mask;
    words[i] = bit_cast<uint32_t>(z[i]);
    z[i] = approximate<kDomain, Approximate>(words[i], lattice.spread, mask);
    unsure |= mask << i;
  }
  RC_ROLL
  for (int left = 0; unsure >> left; ++left) {
    if (!(unsure >> left & 1)) continue;
    uint32_t word = words[0];
    float guess = z[0];
    RC_UNROLL
    for (int i = 1; i < 4; ++i)
      word = i == left ? words[i] : word, guess = i == left ? z[i] : guess;
    LatticePlace at = place;
    at.element += left;
    const auto count = exact_count(lattice, word, guess, at);
    RC_UNROLL
    for (int i = 0; i < 4; ++i) z[i] = i == left ? static_cast<float>(count) : z[i];
  }
  RC_UNROLL
  for (int i = 0; i < 4; ++i) {
    z[i] = bit_cast<float>(bit_cast<uint32_t>(z[i]) | (words[i] & 0x80000000u));
  }
}

// One step of a row: the noise of L::kElements elements, in element order.
template <Domain kDomain, class L>
RC_HOST_DEVICE void draw_lattice(const Lattice& lattice, const PhiloxRow& row,
                                 const PhiloxColumn<L>& column, const PhiloxKeys<L>& keys,
                                 const LatticePlace& place, typename L::Float (&z)[L::kVectors]) {
  using Float = typename L::Float;
  using Uint = typename L::Uint;
  words_in_order<L>(row, column, keys, z, [](Uint r, Uint t, Float& a, Float& b) {
    a = L::template as<Float>(r), b = L::template as<Float>(t);
  });
  if constexpr (L::kFloats == 1) {
    noise_of_four<kDomain>(lattice, place, z);
  } else {
    Uint words[L::kVectors];
    uint32_t unsure[L::kVectors], any = 0;
    for (int i = 0; i < L::kVectors; ++i) {
      words[i] = L::template as<Uint>(z[i]);
      z[i] = approximate<kDomain, L>(words[i], lattice.spread, unsure[i]);
      any |= unsure[i];
    }
    for (int i = 0; any && i < L::kVectors; ++i) {
      LatticePlace at = place;
      at.element += i * L::kFloats;
      z[i] = exact_counts<kDomain, L>(lattice, words[i], z[i], unsure[i], at);
    }
    for (int i = 0; i < L::kVectors; ++i) {
      z[i] = L::template as<Float>(L::template as<Uint>(z[i]) | (words[i] & 0x80000000u));
    }
  }
}

}  // namespace RC_ISA
}  // namespace robustcore::smoothing
