#include <cmath>
#include <cstring>

#include "smoothing/votes.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

using Float = Lanes::Float;

// Index of the first maximum of a row, or -1 if the row holds a NaN.
int64_t argmax(const float* row, int64_t n) {
  constexpr int64_t w = Lanes::kFloats;
  const auto load = [&](int64_t i) {
    return n - i >= w ? Lanes::load(row + i)
                      : Lanes::load_partial(row + i, static_cast<int>(n - i));
  };
  Float best = Lanes::splat(-INFINITY);
  uint32_t nan = 0;
  for (int64_t i = 0; i < n; i += w) {
    const Float v = load(i);
    nan |= Lanes::nan_mask(v);
    best = Lanes::max(best, v);
  }
  if (nan) return -1;
  const Float maximum = Lanes::splat(Lanes::reduce_max(best));
  for (int64_t i = 0;; i += w) {
    if (const uint32_t hit = Lanes::equal_mask(load(i), maximum)) return i + __builtin_ctz(hit);
  }
}

// The same for a row of at most two vectors, without a branch: rows then overlap in the pipeline.
RC_HOST_DEVICE int64_t argmax_narrow(const float* row, int n) {
  constexpr int w = Lanes::kFloats;
  const int n0 = n < w ? n : w;
  const Float v0 = Lanes::load_partial(row, n0), v1 = Lanes::load_partial(row + n0, n - n0);
  const Float maximum = Lanes::splat(Lanes::reduce_max(Lanes::max(v0, v1)));
  const uint64_t hit =
      Lanes::equal_mask(v0, maximum) | static_cast<uint64_t>(Lanes::equal_mask(v1, maximum)) << w;
  const bool nan = Lanes::nan_mask(v0) | Lanes::nan_mask(v1);
  return nan ? -1 : __builtin_ctzll(hit | uint64_t{1} << 63);
}

// The same for any dtype and stride, in the row's own precision.
template <class T>
int64_t argmax_strided(const StridedView& view, int64_t image, int64_t sample, int64_t n) {
  constexpr int64_t kChunk = 256;
  T values[kChunk], best = -INFINITY;
  int64_t best_at = 0;
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t count = first + kChunk < n ? kChunk : n - first;
    load_elements(view, image, sample, first, count, values);
    for (int64_t i = 0; i < count; ++i) {
      if (values[i] != values[i]) return -1;
      if (values[i] > best) best = values[i], best_at = first + i;
    }
  }
  return best_at;
}

// Calls count(k) with the vote of each row in [first, last); k = -1 is a vote withheld.
template <class Count>
RC_HOST_DEVICE void for_each_vote(const VotesArgs& args, int64_t image, int64_t first, int64_t last,
                                  const Count& count) {
  const StridedView& v = args.logits;
  const int64_t n = args.classes;
  if (v.dtype == DType::kFloat32 && v.strides[0] == 1) {
    const float* rows = static_cast<const float*>(v.data) + image * v.image_stride;
    if (n <= 2 * Lanes::kFloats) {
      const int narrow = static_cast<int>(n);
      for (int64_t s = first; s < last; ++s)
        count(argmax_narrow(rows + s * v.sample_stride, narrow));
    } else {
      for (int64_t s = first; s < last; ++s) count(argmax(rows + s * v.sample_stride, n));
    }
  } else if (v.dtype == DType::kFloat64) {
    for (int64_t s = first; s < last; ++s) count(argmax_strided<double>(v, image, s, n));
  } else {
    for (int64_t s = first; s < last; ++s) count(argmax_strided<float>(v, image, s, n));
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(votes)(const VotesArgs& args, int64_t begin, int64_t end) {
  // Few classes collide often, so they are counted locally first; with many, a shared increment
  // costs nothing beside the row. Integer addition commutes: the order of threads cannot show.
  constexpr int64_t kLocal = 1024;
  const int64_t units = ceil_div(args.samples, kVotesRows);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / units, first = unit % units * kVotesRows;
    const int64_t last = first + kVotesRows < args.samples ? first + kVotesRows : args.samples;
    int64_t* counts = args.counts + image * args.classes;
    const auto add = [&](int64_t k, int64_t n) {
      __atomic_fetch_add(counts + k, n, __ATOMIC_RELAXED);
    };
    if (args.classes <= kLocal) {
      int64_t local[kLocal + 1];  // slot 0 takes the votes withheld
      memset(local, 0, (args.classes + 1) * sizeof(int64_t));
      for_each_vote(args, image, first, last, [&](int64_t k) { ++local[k + 1]; });
      for (int64_t k = 0; k < args.classes; ++k) {
        if (local[k + 1]) add(k, local[k + 1]);
      }
    } else {
      for_each_vote(args, image, first, last, [&](int64_t k) {
        if (k >= 0) add(k, 1);
      });
    }
  }
}

}  // namespace robustcore::smoothing
