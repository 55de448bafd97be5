// Smoothing: the noise stream, the arguments of its kernels, and the arithmetic both devices run.
//
// The stream, version 1; it never changes within a major version. The standard normal of element e
// of sample s of image i under `seed` is output e % 4 of Philox4x32-10 with
//   key     = (low, high) words of seed
//   counter = (e / 4, low word of s, low word of i, domain << 24 | bits 32..39 of s << 16 |
//   bits 32..47 of i)
// turned to normals by box_muller (common/math.h), words (0, 1) -> outputs (0, 1), (2, 3) -> (2,
// 3). It is a float32 for every dtype, layout, device and batch.
#pragma once

#include "common/math.h"
#include "common/philox.h"
#include "common/strided.h"

namespace robustcore::smoothing {

// Keeps the streams of different distributions apart (counter word 3, top byte).
constexpr uint32_t kGaussianDomain = 0;

constexpr int64_t kMaxElements = int64_t{1} << 34;
constexpr int64_t kMaxSamples = int64_t{1} << 40;
constexpr int64_t kMaxImages = int64_t{1} << 48;

struct Stream {
  uint64_t seed;
  int64_t image_offset, sample_offset;
  const int64_t* sample_offset_ptr;  // added to sample_offset when not null; on the op's device
};

// out[b, s, e] = (x + sigma * z - mean) / std
struct NoiseArgs {
  int64_t images, samples, elements;
  Stream stream;
  StridedView x, sigma, mean, std;  // sigma.data null: sigma_value; mean, std null: 0, 1
  double sigma_value;
  void*
      out;  // [images, samples, elements], or with channels > 1 [images, samples, pixels, channels]
  DType out_dtype;
  int64_t channels;  // 1: elements lie in logical order
};

// sum[b, e] = sum over s of grad[b, s, e]; noise_sum[b, e] = sum over s of grad[b, s, e] * z[b, s,
// e]. The order of addition is fixed: samples in runs of kSumRun, then the runs in order.
constexpr int64_t kSumRun = 32;
struct SumsArgs {
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

RC_HOST_DEVICE int64_t first_sample(const Stream& stream) {
  return stream.sample_offset + (stream.sample_offset_ptr ? *stream.sample_offset_ptr : 0);
}

// A device-side sample offset cannot be checked on the host; the masks keep an index that is out of
// range inside its own field.
RC_HOST_DEVICE PhiloxRow stream_row(const PhiloxKey& key, int64_t image, int64_t sample) {
  const uint32_t sample_high = static_cast<uint32_t>(sample >> 32) & 0xFFu;
  const uint32_t image_high = static_cast<uint32_t>(image >> 32) & 0xFFFFu;
  return philox_row(key, static_cast<uint32_t>(sample), static_cast<uint32_t>(image),
                    kGaussianDomain << 24 | sample_high << 16 | image_high);
}

// One step of the stream: L::kElements normals, element order.
template <class L>
RC_HOST_DEVICE void normals(const PhiloxRow& row, const PhiloxColumn<L>& column,
                            const typename L::Word (&keys)[kPhiloxRounds][2],
                            typename L::Float (&z)[L::kVectors]) {
  typename L::Word words[4];
  philox_from_row<L>(row, column, keys, words);
  L::normals(words, z,
             [](typename L::Uint r, typename L::Uint t, typename L::Float& a,
                typename L::Float& b) { box_muller<L>(r, t, a, b); });
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

}  // namespace RC_ISA
}  // namespace robustcore::smoothing
