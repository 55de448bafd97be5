#include "attacks/square.h"
#include "common/cuda.h"

namespace robustcore::attacks {
namespace {

template <class E>
__global__ void __launch_bounds__(kThreads) square_kernel(const __grid_constant__ SquareArgs args) {
  using T = Arithmetic<E>;
  const int64_t elements = args.elements(), pixels = args.height * args.width;
  for_units(args.rows, [&](int64_t at) {
    const auto draw = SquareDraw::of<T>(args, at);
    const Ball<OneLane<T>> ball(at_row<T>(args.eps, at), args.low, args.high);
    const T radius = ball.radius();
    const E* const x0 = static_cast<const E*>(args.x0.data) + at * args.x0.image_stride;
    const E* const best = static_cast<const E*>(args.best.data) + at * args.best.image_stride;
    E* const out = static_cast<E*>(args.out) + at * args.place.image_stride;
    for (int64_t k = threadIdx.x; k < elements; k += blockDim.x) {
      const int64_t c = k / pixels, y = k % pixels / args.width, x = k % args.width;
      E* const to = out + element_offset(args.place, k);
      if (!draw.covers(y, x)) {
        *to = best[element_offset(args.best, k)];
        continue;
      }
      const bool plus = draw.plus(draw.size ? c : c * args.width + x);
      const T center = convert<T>(x0[element_offset(args.x0, k)]);
      *to = rounded_towards<E>(square_value(ball, radius, center, plus), center);
    }
  });
}

}  // namespace

void square_cuda(const SquareArgs& args, void* stream) {
  dispatch(args.x0.dtype, [&](auto tag) {
    launch(square_kernel<decltype(tag)>, args.rows, kThreads, stream, args);
  });
}

}  // namespace robustcore::attacks
