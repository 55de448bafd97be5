#include "common/cuda.h"
#include "smoothing/pixel_votes.h"

namespace robustcore::smoothing {
namespace {

// One thread a pixel of one sample: a map of a few thousand pixels alone would leave most of a GPU
// idle. Sums of integers do not depend on the order of the atomics.
template <class In>
__global__ void __launch_bounds__(kThreads)
    pixel_votes_kernel(const __grid_constant__ PixelVotesArgs args) {
  using T = Arithmetic<In>;
  for_items(args.samples * args.pixels, [&](int64_t item) {
    const int64_t sample = item / args.pixels, pixel = item % args.pixels;
    const In* logits = static_cast<const In*>(args.logits.data) +
                       sample * args.logits.image_stride + element_offset(args.logits, pixel);
    T best = convert<T>(logits[0]);
    bool nan = best != best;
    int64_t at = 0;
    for (int64_t k = 1; k < args.classes; ++k) {
      const T v = convert<T>(logits[k * args.logits.sample_stride]);
      nan |= v != v;
      if (v > best) best = v, at = k;
    }
    if (nan) return;
    if (!args.chosen) {
      atomicAdd(&args.counts[at * args.pixels + pixel], 1);
    } else if (at == args.chosen[pixel]) {
      atomicAdd(&args.counts[pixel], 1);
    }
  });
}

}  // namespace

void pixel_votes_cuda(const PixelVotesArgs& args, void* stream) {
  dispatch(args.logits.dtype, [&](auto tag) {
    launch_items(pixel_votes_kernel<decltype(tag)>, args.samples * args.pixels, stream, args);
  });
}

}  // namespace robustcore::smoothing
