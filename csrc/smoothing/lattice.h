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

// Quantiles of |spread Z| in float32, of 1 - V = (steps + 1/2) / 2^31. Half a bucket of V included,
// they err by at most relative * quantile + absolute * spread where steps >= least. Proven by
// trying all 2^31 buckets (lattice_check).
template <Domain kDomain>
struct Quantile;

template <class L>
RC_HOST_DEVICE typename L::Float tail_of(typename L::Float steps) {
  return L::fma(steps, L::splat(0x1p-31f), L::splat(0x1p-32f));
}

// Z standard normal: Phi^-1((1 + v) / 2) = v P(-2 ln(1 - v^2)), P a minimax polynomial of relative
// error 9.7e-7. Where a table fits into a vector, a polynomial for each power of two instead, of
// relative error 1.8e-6 (absolute below z = .1): no logarithm is needed.
template <>
struct Quantile<Domain::kLatticeGaussian> {
  static constexpr float relative = 2.5e-6f, absolute = 2.5e-7f, least = 137440;

  template <class L>
  static RC_HOST_DEVICE typename L::Float of(typename L::Float steps, float spread) {
    if constexpr (L::kFloats == 16) {
      return L::splat(spread) * by_table<L>(steps);
    } else {
      constexpr float c[] = {2.29603362f,      0.170860484f,    -0.002027618f,
                             -0.00014830727f,  1.71230058e-05f, -5.22882317e-07f,
                             -3.57245078e-08f, 3.66671915e-09f, -9.61489846e-11f};
      const auto tail = tail_of<L>(steps);
      const auto w = neg_two_log<L>(tail * (L::splat(2.0f) - tail));
      const auto v = L::fma(L::splat(-spread), tail, L::splat(spread));
      return v * horner<L>(w - L::splat(6.0f), c);
    }
  }

 private:
  // [power of (mantissa - 3/2)][exponent field mod 16], 2^17 to 2^31
  template <class L>
  static RC_HOST_DEVICE typename L::Float by_table(typename L::Float steps) {
    alignas(64) static constexpr float c[7][16] = {
        {3.91195297f, 3.74125242f, 3.56330776f, 3.37714577f, 3.18155956f, 2.97502065f, 2.75554872f,
         2.52050209f, 2.26622677f, 1.98742783f, 1.67593968f, 1.31801081f, 0.887146533f,
         0.318639755f, 0, 0},
        {-0.160966575f, -0.167526335f, -0.174929589f, -0.183370128f, -0.193109438f, -0.204510078f,
         -0.218091488f, -0.234628215f, -0.255334646f, -0.282241791f, -0.319054633f, -0.373417646f,
         -0.464415997f, -0.659296811f, 0, 0},
        {0.0506849326f, 0.0525045097f, 0.0545246378f, 0.0567831248f, 0.0593278557f, 0.0622200221f,
         0.0655383095f, 0.0693834573f, 0.0738804415f, 0.0791659281f, 0.085307911f, 0.0918974206f,
         0.0956728905f, 0.0692269057f, 0, 0},
        {-0.0218552295f, -0.022601204f, -0.0234251749f, -0.0243411008f, -0.0253664926f,
         -0.0265235677f, -0.0278408416f, -0.0293552447f, -0.0311149471f, -0.0331830643f,
         -0.0356443226f, -0.0386399217f, -0.0427683629f, -0.0572570823f, 0, 0},
        {0.0106900791f, 0.011044085f, 0.0114339963f, 0.0118660526f, 0.0123480428f, 0.012889808f,
         0.0135039324f, 0.0142066926f, 0.0150193749f, 0.0159700494f, 0.0170958601f, 0.0184444934f,
         0.020028837f, 0.0192516763f, 0, 0},
        {-0.00657582097f, -0.00678728381f, -0.00701955706f, -0.00727614574f, -0.00756139914f,
         -0.00788077526f, -0.00824119989f, -0.0086515639f, -0.00912338961f, -0.00967172626f,
         -0.0103162397f, -0.0110824527f, -0.0120095303f, -0.014037326f, 0, 0},
        {0.00379841472f, 0.0039172587f, 0.0040474073f, 0.00419067778f, 0.00434929319f,
         0.00452599255f, 0.00472416449f, 0.0049479967f, 0.00520259095f, 0.00549385743f,
         0.00582746882f, 0.0062035853f, 0.00658368552f, 0.00605813041f, 0, 0}};
    const auto bits = L::template as<typename L::Uint>(steps);
    const auto mantissa = (bits & 0x7FFFFFu) | 0x3F800000u;
    const auto t = L::template as<typename L::Float>(mantissa) - L::splat(1.5f);
    auto z = L::lookup(c[6], bits >> 23);
    RC_UNROLL
    for (int i = 5; i >= 0; --i) z = L::fma(z, t, L::lookup(c[i], bits >> 23));
    return z;
  }
};

template <>
struct Quantile<Domain::kLatticeUniform> {
  static constexpr float relative = 2e-7f, absolute = 2e-7f, least = 0;

  template <class L>
  static RC_HOST_DEVICE typename L::Float of(typename L::Float steps, float spread) {
    return L::fma(L::splat(-0x1p-31f * spread), steps, L::splat(spread));
  }
};

template <>
struct Quantile<Domain::kLatticeLaplace> {
  static constexpr float relative = 1e-6f, absolute = 2e-6f, least = 0x1p19f;

  template <class L>
  static RC_HOST_DEVICE typename L::Float of(typename L::Float steps, float spread) {
    return L::splat(0.5f * spread) * neg_two_log<L>(tail_of<L>(steps));
  }
};

// |N| of the words' low 31 bits, and the lanes where it may be another (as bits of `unsure`).
template <Domain kDomain, class L>
RC_HOST_DEVICE typename L::Float approximate(typename L::Uint word, float spread,
                                             uint32_t& unsure) {
  using Q = Quantile<kDomain>;
  using Int = typename L::Int;
  const auto steps = L::from_int(L::template as<Int>(~word & 0x7FFFFFFFu));
  const auto size = Q::template of<L>(steps, spread);
  // Adding 1.5 * 2^23 rounds to an integer. Its border is as far as the fraction is from 1/2.
  const auto magic = L::splat(0x1.8p23f);
  const auto count = (size + magic) - magic;
  const auto sure = L::fma(L::splat(-Q::relative), size, L::splat(0.5f - spread * Q::absolute));
  unsure = L::less_mask(sure, abs<L>(size - count));
  if constexpr (Q::least > 0) unsure |= L::less_mask(steps, L::splat(Q::least));
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
// the polynomial of one may even be below 0.
RC_HOST_DEVICE int64_t exact_count(const Lattice& lattice, uint32_t word, int64_t guess,
                                   const LatticePlace& place) {
  int64_t k = guess < 0 ? 0 : guess < lattice.count ? guess : lattice.count;
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

// |N| again for the lanes of `unsure`: some 3 in 10 000, so out of the way of the others.
template <class L>
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
    counts[i] =
        static_cast<float>(exact_count(lattice, words[i], static_cast<int64_t>(counts[i]), at));
  }
  return L::load(counts);
}

// The noise of L::kFloats neighbouring elements, integers as floats, from their words.
template <Domain kDomain, class L>
RC_HOST_DEVICE typename L::Float noise_of_words(const Lattice& lattice, typename L::Uint word,
                                                const LatticePlace& place) {
  using Uint = typename L::Uint;
  uint32_t unsure;
  auto count = approximate<kDomain, L>(word, lattice.spread, unsure);
  if (unsure) count = exact_counts<L>(lattice, word, count, unsure, place);
  return L::template as<typename L::Float>(L::template as<Uint>(count) | (word & 0x80000000u));
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
    z[i] = approximate<kDomain, Scalar>(words[i], lattice.spread, mask);
    unsure |= mask << i;
  }
  RC_ROLL
  for (int left = 0; left < 4; ++left) {
    if (!(unsure >> left & 1)) continue;
    uint32_t word = words[0];
    float guess = z[0];
    RC_UNROLL
    for (int i = 1; i < 4; ++i)
      word = i == left ? words[i] : word, guess = i == left ? z[i] : guess;
    LatticePlace at = place;
    at.element += left;
    const auto count = exact_count(lattice, word, static_cast<int64_t>(guess), at);
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
    for (int i = 0; i < L::kVectors; ++i) {
      LatticePlace at = place;
      at.element += i * L::kFloats;
      z[i] = noise_of_words<kDomain, L>(lattice, L::template as<Uint>(z[i]), at);
    }
  }
}

}  // namespace RC_ISA
}  // namespace robustcore::smoothing
