// What the kernels of many samples of an image share: the order in which samples are summed, and
// how outputs [images, samples, channels, pixels] are cut into tiles on the CPU.
#pragma once

#include "common/strided.h"

namespace robustcore::smoothing {

// Samples are summed in runs of kSumRun, then the runs in order, on every device.
constexpr int64_t kSumRun = 32;
constexpr int64_t kSumsTile = 256;  // elements whose sums stay in L1

constexpr int64_t kTileElements = 1024;  // three float arrays of it stay in L1
constexpr int64_t kTileSamples = 64;     // of one tile in a unit: what they share is loaded once
constexpr int64_t kTileChannels = 32;    // that lie side by side

struct SampleTile {
  int64_t image;
  int64_t pixel, pixels;      // first, count
  int64_t channel, channels;  // first, count
  int64_t sample, samples;    // first, end
};

// A tile is `pixels` neighbouring positions of `channels` channels; a unit is one over a chunk of
// samples.
struct SampleTiling {
  int64_t all_images, all_samples, all_channels, all_pixels;
  int64_t channels, pixels;
  int64_t channel_tiles, pixel_tiles, sample_chunks;

  // `adjacent`: channels lie side by side in memory. Tiles start at multiples of `align` pixels.
  SampleTiling(int64_t images, int64_t samples, int64_t channel_count, int64_t pixel_count,
               bool adjacent, int64_t align)
      : all_images(images),
        all_samples(samples),
        all_channels(channel_count),
        all_pixels(pixel_count),
        channels(!adjacent                       ? 1
                 : channel_count < kTileChannels ? channel_count
                                                 : kTileChannels),
        pixels(kTileElements / channels / align * align),
        channel_tiles(ceil_div(channel_count, channels)),
        pixel_tiles(ceil_div(pixel_count, pixels)),
        sample_chunks(ceil_div(samples, kTileSamples)) {}

  int64_t units() const {
    return all_images * channel_tiles * pixel_tiles * sample_chunks;
  }
  SampleTile tile(int64_t unit) const {
    const auto at_most = [](int64_t count, int64_t left) { return count < left ? count : left; };
    SampleTile t{};
    t.sample = unit % sample_chunks * kTileSamples;
    t.samples = at_most(t.sample + kTileSamples, all_samples);
    unit /= sample_chunks;
    t.pixel = unit % pixel_tiles * pixels;
    t.pixels = at_most(pixels, all_pixels - t.pixel);
    unit /= pixel_tiles;
    t.channel = unit % channel_tiles * channels;
    t.channels = at_most(channels, all_channels - t.channel);
    t.image = unit / channel_tiles;
    return t;
  }
};

}  // namespace robustcore::smoothing
