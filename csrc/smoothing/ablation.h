// Ablation: which pixels of an image each sample keeps, as bit masks, and the selection by them.
//
// Random masks, version 1 of their stream; it never changes within a major version. Sample s of
// image i keeps k of d pixels by Floyd's algorithm (Bentley and Floyd, "A sample of brilliance",
// 1987), in m = min(k, d - k) steps: step e draws t uniform in [0, d - m + e] and marks t, or the
// pixel d - m + e if t is marked. Marked pixels are the kept ones if k <= d - k, else the others.
// The draw takes the word of element e of the stream (common/stream.h), domain kAblation, and is
// exactly uniform (Lemire, "Fast random integer generation in an interval", 2019): the rare word
// that would bias it is replaced by word 0 at counter word 0 = (e << 8 | attempt) of
// kAblationRetry.
#pragma once

#include "common/stream.h"
#include "common/strided.h"
#include "common/variants.h"
#include "smoothing/samples.h"

namespace robustcore::smoothing {

constexpr int64_t kMaxPixels = int64_t{1} << 24;

// Bit p % 32 of word p / 32 of masks[image, sample] is 1 where pixel p is kept; bits past the last
// pixel are 0.
struct PixelMaskArgs {
  int64_t images, samples, pixels, kept;
  Stream stream;
  uint32_t* masks;  // [images, samples, words]
};

// Mask `s` keeps a window of patch_h by patch_w pixels that wraps around the image, its corner at
// (position / columns * stride_h, position % columns * stride_w) with position = first + s.
struct PatchMaskArgs {
  int64_t samples, first, height, width, patch_h, patch_w, stride_h, stride_w, columns;
  uint32_t* masks;  // [samples, words]
};

// out[b, s, c, p] = values[b, c, p] where p is kept, else fill[c, p].
struct SelectArgs {
  int64_t images, samples, channels, pixels;
  StridedView values, fill;  // fill.data null: 0
  const uint32_t* masks;
  int64_t mask_images;  // images, or 1: the same masks for all
  void* out;            // [images, samples, channels, pixels], or pixels before channels
  DType out_dtype;
  bool channels_last;
};

// sum[b, c, p] = sum over the samples s that keep p of grad[b, s, c, p], in the order of kSumRun.
struct KeptSumsArgs {
  int64_t images, samples, channels, pixels;
  StridedView grad;
  const uint32_t* masks;
  int64_t mask_images;
  void* sum;  // [images, channels, pixels], float64 if grad is, else float32
};

constexpr int64_t mask_words(int64_t pixels) {
  return ceil_div(pixels, 32);
}

// Units of the CPU's kernels; of the masks' a mask.
inline SampleTiling select_tiling(const SelectArgs& a) {
  // Tiles start on a word of the masks.
  return {a.images, a.samples, a.channels, a.pixels, a.channels_last, 32};
}
inline int64_t kept_sums_units(const KeptSumsArgs& a) {
  return a.images * a.channels * ceil_div(a.pixels, kSumsTile);
}

RC_VARIANTS(pixel_masks, const PixelMaskArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(patch_masks, const PatchMaskArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(select, const SelectArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(kept_sums, const KeptSumsArgs& args, int64_t begin, int64_t end);
void pixel_masks_cuda(const PixelMaskArgs& args, void* stream);
void patch_masks_cuda(const PatchMaskArgs& args, void* stream);
void select_cuda(const SelectArgs& args, void* stream);
void kept_sums_cuda(const KeptSumsArgs& args, void* stream);

inline namespace RC_ISA {

RC_HOST_DEVICE const uint32_t* mask_row(const uint32_t* masks, int64_t mask_images, int64_t samples,
                                        int64_t pixels, int64_t image, int64_t sample) {
  return masks + ((mask_images == 1 ? 0 : image) * samples + sample) * mask_words(pixels);
}

RC_HOST_DEVICE int64_t marked_pixels(const PixelMaskArgs& args) {
  return args.kept <= args.pixels - args.kept ? args.kept : args.pixels - args.kept;
}

// The draw of step `step` in [0, bound), from its word of the stream.
RC_HOST_DEVICE uint32_t draw_below(uint32_t word, uint32_t bound, uint64_t seed, int64_t image,
                                   int64_t sample, uint32_t step) {
  uint64_t product = static_cast<uint64_t>(word) * bound;
  if (static_cast<uint32_t>(product) < bound) {
    const uint32_t biased = (0u - bound) % bound;
    for (uint32_t attempt = 0; static_cast<uint32_t>(product) < biased && attempt < 256;
         ++attempt) {
      uint32_t words[4];
      stream_words(seed, Domain::kAblationRetry, image, sample, step << 8 | attempt, words);
      product = static_cast<uint64_t>(words[0]) * bound;
    }
  }
  return static_cast<uint32_t>(product >> 32);
}

// Floyd's step: marks `drawn`, or `last` if that is marked already.
RC_HOST_DEVICE void mark(uint32_t* marks, uint32_t drawn, uint32_t last) {
  const uint32_t taken = marks[drawn / 32] >> (drawn % 32) & 1;
  const uint32_t pixel = taken ? last : drawn;
  marks[pixel / 32] |= 1u << (pixel % 32);
}

// Word `word` of the mask whose window has its corner at (top, left).
RC_HOST_DEVICE uint32_t window_word(const PatchMaskArgs& args, int64_t top, int64_t left,
                                    int64_t word) {
  const int64_t first = word * 32, pixels = args.height * args.width;
  int64_t row = first / args.width - top, column = first % args.width - left;
  if (row < 0) row += args.height;
  if (column < 0) column += args.width;
  const int64_t wrap = left > 0 ? args.width - left : 0;  // the column where a new row begins
  const int count = pixels - first < 32 ? static_cast<int>(pixels - first) : 32;
  uint32_t bits = 0;
  for (int i = 0; i < count; ++i) {
    bits |= static_cast<uint32_t>(row < args.patch_h && column < args.patch_w) << i;
    if (++column == args.width) column = 0;
    if (column == wrap && ++row == args.height) row = 0;
  }
  return bits;
}

}  // namespace RC_ISA
}  // namespace robustcore::smoothing
