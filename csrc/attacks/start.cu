#include "attacks/start.h"
#include "common/cuda.h"

namespace robustcore::attacks {
namespace {

// An item is four elements of a row, those of one counter.
__global__ void __launch_bounds__(kThreads)
    start_noise_kernel(const __grid_constant__ StartArgs args) {
  const PhiloxKey key = philox_key(args.seed);
  const PhiloxKeys<Scalar> keys(key);
  const int64_t quads = ceil_div(args.elements, 4);
  for_items(args.rows * quads, [&](int64_t item) {
    const int64_t at = item / quads, first = item % quads * 4;
    float z[Scalar::kVectors];
    start_step<Scalar>(args, start_row(args, key, at), keys, first, z);
    dispatch(args.dtype, [&](auto tag) {
      using E = decltype(tag);
      E* const out = static_cast<E*>(args.out) + at * args.elements + first;
      RC_UNROLL
      for (int i = 0; i < Scalar::kVectors; ++i) {
        if (first + i < args.elements) out[i] = convert<E>(z[i]);
      }
    });
  });
}

}  // namespace

void start_noise_cuda(const StartArgs& args, void* stream) {
  launch_items(start_noise_kernel, args.rows * ceil_div(args.elements, 4), stream, args);
}

}  // namespace robustcore::attacks
