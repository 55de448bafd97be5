#include "common/cuda.h"
#include "smoothing/votes.h"

namespace robustcore::smoothing {
namespace {

constexpr int kSharedClasses = 4096;  // histograms up to here fit in shared memory
constexpr int64_t kVoteRows = 64;     // rows of a group in a unit

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
template <class In, int kGroup>
__device__ Vote<Arithmetic<In>> vote_of(const VotesArgs& args, int64_t image, int64_t s,
                                        bool live) {
  using T = Arithmetic<In>;
  Vote<T> vote{-INFINITY, args.classes, 0};
  if (live) {
    const StridedView& view = args.logits;
    const In* logits =
        static_cast<const In*>(view.data) + image * view.image_stride + s * view.sample_stride;
    for (int64_t k = threadIdx.x % kGroup; k < args.classes; k += kGroup) {
      const T v = convert<T>(logits[k * view.strides[0]]);
      vote.nan |= v != v;
      // The first class a thread sees stands even at -infinity.
      if (v > vote.best || vote.at == args.classes) vote.best = v, vote.at = k;
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

template <class In, int kGroup>
__global__ void __launch_bounds__(kThreads) votes_kernel(const __grid_constant__ VotesArgs args) {
  __shared__ int local[kSharedClasses];
  constexpr int kGroups = kThreads / kGroup;
  const int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
  const int64_t unit_rows = kGroups * kVoteRows, units = ceil_div(args.samples, unit_rows);
  const bool shared = args.classes <= kSharedClasses;

  for_units(args.images * units, [&](int64_t unit) {
    const int64_t image = unit / units, first = unit % units * unit_rows;
    const int64_t last = first + unit_rows < args.samples ? first + unit_rows : args.samples;
    auto* counts = reinterpret_cast<unsigned long long*>(args.counts + image * args.classes);
    if (shared) {
      for (int64_t k = threadIdx.x; k < args.classes; k += kThreads) local[k] = 0;
      __syncthreads();
    }
    // All threads make the same number of turns.
    for (int64_t turn = first; turn < last; turn += kGroups) {
      const bool live = turn + group < last;
      const auto vote = vote_of<In, kGroup>(args, image, turn + group, live);
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

template <class In, int kGroup>
void launch_votes(const VotesArgs& args, void* stream) {
  const int64_t units = args.images * ceil_div(args.samples, kThreads / kGroup * kVoteRows);
  launch(votes_kernel<In, kGroup>, units, kThreads, stream, args);
}

}  // namespace

void votes_cuda(const VotesArgs& args, void* stream) {
  check_cuda(cudaMemsetAsync(args.counts, 0, args.images * args.classes * sizeof(int64_t),
                             static_cast<cudaStream_t>(stream)));
  if (args.samples == 0) return;
  dispatch(args.logits.dtype, [&](auto tag) {
    using In = decltype(tag);
    if (args.classes <= 16) {
      launch_votes<In, 1>(args, stream);
    } else {
      launch_votes<In, 32>(args, stream);
    }
  });
}

}  // namespace robustcore::smoothing
