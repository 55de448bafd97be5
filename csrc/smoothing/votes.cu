#include "common/rows_cuda.h"
#include "smoothing/votes.h"

namespace robustcore::smoothing {
namespace {

constexpr int kSharedClasses = 4096;  // histograms up to here fit in shared memory

// The best class so far; the lowest wins a tie.
template <class T>
struct Vote {
  T best;
  int64_t at;
  int nan;

  __device__ void join(const Vote& other) {
    nan |= other.nan;
    if (other.best > best || (other.best == best && other.at < at)) {
      best = other.best, at = other.at;
    }
  }
};

// The vote of sample `s`, or of none past the last: kGroup neighbouring threads read one row, and
// the whole warp has to come here.
template <class T, int kGroup>
__device__ Vote<T> vote_of(const VotesArgs& args, int64_t image, int64_t s, bool live) {
  const LaneRow<T> logits(args.logits, image, s);
  Vote<T> vote{-INFINITY, args.classes, 0};
  RC_ROLL
  for (int64_t k = threadIdx.x % kGroup; live && k < args.classes; k += kGroup * kAhead) {
    T values[kAhead];
    logits.template read<kGroup>(k, args.classes, values);
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      const int64_t at = k + i * kGroup;
      if (at >= args.classes) break;
      vote.nan |= values[i] != values[i];
      // The first class a thread sees stands even at -infinity.
      if (values[i] > vote.best || vote.at == args.classes) vote.best = values[i], vote.at = at;
    }
  }
  RC_UNROLL
  for (int step = kGroup / 2; step > 0; step /= 2) {
    vote.join({__shfl_xor_sync(0xFFFFFFFFu, vote.best, step),
               __shfl_xor_sync(0xFFFFFFFFu, static_cast<long long>(vote.at), step),
               __shfl_xor_sync(0xFFFFFFFFu, vote.nan, step)});
  }
  return vote;
}

// A unit is a run of `rows` samples of one image.
template <class T, int kGroup>
__global__ void __launch_bounds__(kThreads)
    votes_kernel(const __grid_constant__ VotesArgs args, int64_t rows) {
  __shared__ int local[kSharedClasses];
  constexpr int kGroups = kThreads / kGroup;
  const int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
  const int64_t units = ceil_div(args.samples, rows);
  const bool shared = args.classes <= kSharedClasses;

  for_units(args.images * units, [&](int64_t unit) {
    const int64_t image = unit / units, first = unit % units * rows;
    const int64_t last = first + rows < args.samples ? first + rows : args.samples;
    auto* counts = reinterpret_cast<unsigned long long*>(args.counts + image * args.classes);
    if (shared) {
      for (int64_t k = threadIdx.x; k < args.classes; k += kThreads) local[k] = 0;
      __syncthreads();
    }
    // All threads make the same number of turns.
    for (int64_t turn = first; turn < last; turn += kGroups) {
      const bool live = turn + group < last;
      const auto vote = vote_of<T, kGroup>(args, image, turn + group, live);
      if (!live || lane != 0 || vote.nan) continue;
      if (shared) {
        atomicAdd(&local[vote.at], 1);
      } else {
        atomicAdd(&counts[vote.at], 1ull);
      }
    }
    if (!shared) return;
    __syncthreads();
    for (int64_t k = threadIdx.x; k < args.classes; k += kThreads) {
      if (local[k]) atomicAdd(&counts[k], static_cast<unsigned long long>(local[k]));
    }
    __syncthreads();
  });
}

// As many rows a unit as still leave every processor some units, since each clears and adds a
// histogram.
template <class T, int kGroup>
void launch_votes(const VotesArgs& args, void* stream) {
  constexpr int64_t kLeast = kThreads / kGroup, kMost = 64 * kLeast;
  int64_t rows = ceil_div(args.images * args.samples, blocks_wanted());
  rows = rows < kLeast ? kLeast : rows > kMost ? kMost : rows;
  launch(votes_kernel<T, kGroup>, args.images * ceil_div(args.samples, rows), kThreads, stream,
         args, rows);
}

}  // namespace

void votes_cuda(const VotesArgs& args, void* stream) {
  check_cuda(cudaMemsetAsync(args.counts, 0, args.images * args.classes * sizeof(int64_t),
                             static_cast<cudaStream_t>(stream)));
  if (args.samples == 0) return;
  dispatch_arithmetic(args.logits.dtype, [&](auto of) {
    using T = decltype(of);
    if (args.classes <= 16) {
      launch_votes<T, 1>(args, stream);
    } else {
      launch_votes<T, kWarp>(args, stream);
    }
  });
}

}  // namespace robustcore::smoothing
