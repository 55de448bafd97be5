// The CPU kernels of the family, one table per instruction set; simd.cpp is compiled once for each.
#pragma once

#include "smoothing/ablation.h"

namespace robustcore::smoothing {

// A kernel processes units [begin, end) of its work. Units are fixed by the arguments alone, so the
// result does not depend on how threads share them out.
struct SimdKernels {
  void (*noise)(const NoiseArgs&, int64_t begin, int64_t end);
  void (*sums)(const SumsArgs&, int64_t begin, int64_t end);
  void (*votes)(const VotesArgs&, int64_t begin, int64_t end);
  void (*pixel_masks)(const PixelMaskArgs&, int64_t begin, int64_t end);  // a unit: one mask
  void (*patch_masks)(const PatchMaskArgs&, int64_t begin, int64_t end);
  void (*select)(const SelectArgs&, int64_t begin, int64_t end);
  void (*kept_sums)(const KeptSumsArgs&, int64_t begin, int64_t end);
};

extern const SimdKernels simd_baseline, simd_avx2, simd_avx512;

constexpr int64_t kNoiseTile = 1024;       // elements: three float arrays of it stay in L1
constexpr int64_t kNoiseSamples = 64;      // samples of one tile in a unit: the tile is loaded once
constexpr int64_t kNoiseChannelTile = 32;  // channels-last: channels of one tile
constexpr int64_t kSumsTile = 256;
constexpr int64_t kVotesRows = 512;
constexpr int64_t kSelectTile = 1024;

// How an output is cut into tiles: `pixels` neighbouring positions of `channels` channels.
struct NoiseTiling {
  int64_t pixels, channels;  // of one tile
  int64_t pixel_tiles, channel_tiles, sample_chunks;

  explicit NoiseTiling(const NoiseArgs& a)
      : channels(a.channels < kNoiseChannelTile ? a.channels : kNoiseChannelTile) {
    pixels = kNoiseTile / channels / 4 * 4;  // tiles start on a Philox counter where rows do
    pixel_tiles = ceil_div(a.elements / a.channels, pixels);
    channel_tiles = ceil_div(a.channels, channels);
    sample_chunks = ceil_div(a.samples, kNoiseSamples);
  }
  int64_t units(const NoiseArgs& a) const {
    return a.images * pixel_tiles * channel_tiles * sample_chunks;
  }
};

inline int64_t sums_units(const SumsArgs& a) {
  return a.images * ceil_div(a.elements, kSumsTile);
}

inline int64_t votes_units(const VotesArgs& a) {
  return a.images * ceil_div(a.samples, kVotesRows);
}

// The same for a selection; a tile of pixels starts on a word of the masks.
struct SelectTiling {
  int64_t pixels, group;  // of one tile; group: channels side by side
  int64_t pixel_tiles, channel_tiles, sample_chunks;

  explicit SelectTiling(const SelectArgs& a)
      : group(!a.channels_last                 ? 1
              : a.channels < kNoiseChannelTile ? a.channels
                                               : kNoiseChannelTile) {
    pixels = kSelectTile / group / 32 * 32;
    pixel_tiles = ceil_div(a.pixels, pixels);
    channel_tiles = ceil_div(a.channels, group);
    sample_chunks = ceil_div(a.samples, kNoiseSamples);
  }
  int64_t units(const SelectArgs& a) const {
    return a.images * pixel_tiles * channel_tiles * sample_chunks;
  }
};

inline int64_t kept_sums_units(const KeptSumsArgs& a) {
  return a.images * a.channels * ceil_div(a.pixels, kSumsTile);
}

}  // namespace robustcore::smoothing
