// Images between the layouts of tensors and rows of channels, a pixel after the other, on vectors.
#pragma once

#include <algorithm>

#include "common/lanes.h"

#if !defined(__CUDACC__) && defined(__AVX2__)
namespace robustcore {
inline namespace RC_ISA {

// The first `count` lanes, zeros in the others: none where count <= 0, in a block of padding.
inline Lanes::Float load_first(const float* p, int64_t count) {
  if (count >= Lanes::kFloats) return Lanes::load(p);
  return Lanes::load_partial(p, count > 0 ? static_cast<int>(count) : 0, 0.0f);
}

inline void store_first(float* p, Lanes::Float v, int64_t count) {
  count >= Lanes::kFloats ? Lanes::store(p, v)
                          : Lanes::store_partial(p, v, static_cast<int>(count));
}

// Where pixel (y, x) of an image lies: at data + y * row + x * pixel.
struct ImageRows {
  float* data;
  int64_t row, pixel;
};

// Channels are padded up to a multiple of the vectors, with zeros that are there already or
// written.
inline void image_to_rows(const float* image, int64_t channels, int64_t height, int64_t width,
                          bool channels_last, const ImageRows& to) {
  if (channels_last) {
    for (int64_t y = 0; y < height; ++y) {
      float* out = to.data + y * to.row;
      for (int64_t x = 0; x < width; ++x, out += to.pixel, image += channels) {
        memcpy(out, image, channels * sizeof(float));
      }
    }
    return;
  }
  constexpr int L = Lanes::kFloats;
  const int64_t pixels = height * width;
  for (int64_t p = 0; p < pixels; p += L) {
    const int count = static_cast<int>(std::min<int64_t>(pixels - p, L));
    float* out[L];
    for (int i = 0; i < count; ++i) {
      out[i] = to.data + (p + i) / width * to.row + (p + i) % width * to.pixel;
    }
    for (int64_t c = 0; c < channels; c += L) {
      Lanes::Float v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        v[i] =
            c + i < channels ? load_first(image + (c + i) * pixels + p, count) : Lanes::splat(0.0f);
      }
      Lanes::transpose(v);
      for (int i = 0; i < count; ++i) Lanes::store(out[i] + c, v[i]);
    }
  }
}

// Rows of `pixel` floats, a pixel after the other, to a contiguous image.
inline void rows_to_image(const float* rows, int64_t pixel, int64_t channels, int64_t pixels,
                          float* image) {
  constexpr int L = Lanes::kFloats;
  for (int64_t p = 0; p < pixels; p += L) {
    const int64_t count = pixels - p;
    for (int64_t c = 0; c < channels; c += L) {
      Lanes::Float v[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        v[i] = i < count ? Lanes::load(rows + (p + i) * pixel + c) : Lanes::splat(0.0f);
      }
      Lanes::transpose(v);
      for (int i = 0; i < L && c + i < channels; ++i) {
        store_first(image + (c + i) * pixels + p, v[i], count);
      }
    }
  }
}

}  // namespace RC_ISA
}  // namespace robustcore
#endif
