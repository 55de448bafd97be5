// Votes of pixels: how often each class, or the one chosen, is the arg-max of a pixel's logits.
#pragma once

#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::smoothing {

// With k(b, p) = argmax_k logits[b, k, p], the lowest k in a tie; a NaN among a pixel's logits
// withholds its vote.
struct PixelVotesArgs {
  int64_t samples, classes, pixels;
  StridedView logits;     // [samples, classes, pixels]: a class is what the view calls a sample
  const int64_t* chosen;  // [pixels]: counts[p] += (k(b, p) == chosen[p]); null:
  int32_t* counts;        // [classes, pixels]: counts[k(b, p), p] += 1
};

RC_VARIANTS(pixel_votes, const PixelVotesArgs& args, int64_t begin, int64_t end);
void pixel_votes_cuda(const PixelVotesArgs& args, void* stream);

// Of a unit on the CPU, over all samples: nobody else writes its counters.
constexpr int64_t kVotesPixels = 512;

inline int64_t pixel_votes_units(const PixelVotesArgs& a) {
  return ceil_div(a.pixels, kVotesPixels);
}

}  // namespace robustcore::smoothing
