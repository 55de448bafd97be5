// The counter stream that every random number comes from, version 1; it never changes within a
// major version. Output e % 4 of Philox4x32-10 belongs to element e of sample s of image i, with
//   key     = (low, high) words of seed
//   counter = (e / 4, low word of s, low word of i,
//              domain << 24 | bits 32..39 of s << 16 | bits 32..47 of i)
// What a word is turned into is said where its domain is used.
#pragma once

#include "common/philox.h"

namespace robustcore {

// Keeps streams of one seed apart: every use of random numbers has a number here, never reused.
enum class Domain : uint32_t {
  kGaussian = 0,         // smoothing/noise.h
  kUniform = 1,          // smoothing/noise.h
  kLaplace = 2,          // smoothing/noise.h
  kSplitting = 3,        // smoothing/noise.h
  kAblation = 4,         // smoothing/ablation.h
  kAblationRetry = 5,    // smoothing/ablation.h
  kLatticeGaussian = 6,  // smoothing/lattice.h, as the next four
  kLatticeUniform = 7,
  kLatticeLaplace = 8,
  kLatticeMiddle = 9,
  kLatticeLow = 10,
  kAttackStart = 16,  // attacks/start.h
  kSquare = 17,       // attacks/square.h
  kRademacher = 24,   // influence/projection.h
  kNormal = 25,       // influence/projection.h; 192 to 255 are left to users
};

constexpr int64_t kMaxElements = int64_t{1} << 34;
constexpr int64_t kMaxSamples = int64_t{1} << 40;
constexpr int64_t kMaxImages = int64_t{1} << 48;

// Where a call starts in the stream.
struct Stream {
  uint64_t seed;
  int64_t image_offset, sample_offset;
  // Added to the offsets when not null; on the op's device, so that a CUDA graph can advance them.
  const int64_t *image_offset_ptr, *sample_offset_ptr;
};

inline namespace RC_ISA {

RC_HOST_DEVICE int64_t first_image(const Stream& stream) {
  return stream.image_offset + (stream.image_offset_ptr ? *stream.image_offset_ptr : 0);
}
RC_HOST_DEVICE int64_t first_sample(const Stream& stream) {
  return stream.sample_offset + (stream.sample_offset_ptr ? *stream.sample_offset_ptr : 0);
}

// Word 3 of the counter. Offsets on the device cannot be checked on the host; the masks keep an
// index that is out of range inside its own field.
RC_HOST_DEVICE uint32_t counter_high(Domain domain, int64_t image, int64_t sample) {
  return static_cast<uint32_t>(domain) << 24 | static_cast<uint32_t>(sample >> 32 & 0xFF) << 16 |
         static_cast<uint32_t>(image >> 32 & 0xFFFF);
}

// The four words at counter word 0 = `first`: those of elements 4 * first to 4 * first + 3.
RC_HOST_DEVICE void stream_words(uint64_t seed, Domain domain, int64_t image, int64_t sample,
                                 uint32_t first, uint32_t (&words)[4]) {
  const uint32_t counter[4] = {first, static_cast<uint32_t>(sample), static_cast<uint32_t>(image),
                               counter_high(domain, image, sample)};
  philox4x32(counter, seed, words);
}

// What of a sample's words does not depend on the element.
RC_HOST_DEVICE PhiloxRow stream_row(const PhiloxKey& key, Domain domain, int64_t image,
                                    int64_t sample) {
  return philox_row(key, static_cast<uint32_t>(sample), static_cast<uint32_t>(image),
                    counter_high(domain, image, sample));
}

// The round keys of one seed as lanes.
template <class L>
struct PhiloxKeys {
  typename L::Word words[kPhiloxRounds][2];

  PhiloxKeys() = default;
  explicit RC_HOST_DEVICE PhiloxKeys(const PhiloxKey& key) {
    RC_UNROLL
    for (int r = 0; r < kPhiloxRounds; ++r) {
      words[r][0] = L::word(key.k0[r]), words[r][1] = L::word(key.k1[r]);
    }
  }
};

// One step of a row: L::kElements values in element order, made pair by pair of the row's words.
template <class L, class Pair>
RC_HOST_DEVICE void words_in_order(const PhiloxRow& row, const PhiloxColumn<L>& column,
                                   const PhiloxKeys<L>& keys, typename L::Float (&z)[L::kVectors],
                                   const Pair& pair) {
  typename L::Word words[4];
  philox_from_row<L>(row, column, keys.words, words);
  L::normals(words, z, pair);
}

}  // namespace RC_ISA
}  // namespace robustcore
