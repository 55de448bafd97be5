#include "common/cuda.h"
#include "lipschitz/skew.h"

namespace robustcore::lipschitz {
namespace {

template <class E>
__global__ void __launch_bounds__(kThreads) skew_kernel(const __grid_constant__ SkewArgs args) {
  using T = Arithmetic<E>;
  const E* weight = static_cast<const E*>(args.weight);
  const int64_t n = args.channels, taps = args.taps;
  for_items(n * n * taps, [&](int64_t e) {
    const int64_t t = e % taps, i = e / taps % n, o = e / taps / n;
    const E q = weight[(i * n + o) * taps + taps - 1 - t];
    static_cast<E*>(args.out)[e] = convert<E>((convert<T>(weight[e]) - convert<T>(q)) * T(0.5));
  });
}

}  // namespace

void skew_cuda(const SkewArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto tag) {
    launch_items(skew_kernel<decltype(tag)>, args.channels * args.channels * args.taps, stream,
                 args);
  });
}

}  // namespace robustcore::lipschitz
