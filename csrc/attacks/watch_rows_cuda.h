// Copies of the best points on CUDA.
#pragma once

#include "attacks/rows_cuda.h"
#include "attacks/watch.h"

namespace robustcore::attacks {
namespace {

template <class Word>
__device__ void copy_words(const BlockTeam& team, void* to, const void* from, int64_t first,
                           int64_t words) {
  team.for_batches(words, false, [&](int64_t k, int) {
    Word values[kAhead];
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (k + i * kWarp < words) {
        values[i] = static_cast<const Word*>(from)[first + k + i * kWarp];
      }
    }
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (k + i * kWarp < words) static_cast<Word*>(to)[first + k + i * kWarp] = values[i];
    }
  });
}

// A row of elements, as words of the largest size that all of them are made of.
__device__ void copy_row(const BlockTeam& team, const WatchArgs& args, void* to, const void* from,
                         int64_t at) {
  const int64_t bytes = args.elements * args.element_size;
  bytes % 4 == 0 ? copy_words<uint32_t>(team, to, from, at * bytes / 4, bytes / 4)
                 : copy_words<uint16_t>(team, to, from, at * bytes / 2, bytes / 2);
}

__device__ void copy_best(const BlockTeam& team, const WatchArgs& args, int64_t at) {
  copy_row(team, args, args.best, args.x, at);
  if (args.best_grad) copy_row(team, args, args.best_grad, args.grad.data, at);
}

}  // namespace
}  // namespace robustcore::attacks
