// Votes: how often each class is the arg-max of a row of logits.
#pragma once

#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::smoothing {

// counts[b, argmax_k logits[b, s, k]] += 1; the lowest k wins a tie, a NaN anywhere in the row
// withholds its vote.
struct VotesArgs {
  int64_t images, samples, classes;
  StridedView logits;
  int64_t* counts;  // [images, classes]; zeroed by noise
};

RC_VARIANTS(votes, const VotesArgs& args, int64_t begin, int64_t end);
void votes_cuda(const VotesArgs& args, void* stream);

constexpr int64_t kVotesRows = 512;  // of a unit on the CPU

inline int64_t votes_units(const VotesArgs& a) {
  return a.images * ceil_div(a.samples, kVotesRows);
}

}  // namespace robustcore::smoothing
