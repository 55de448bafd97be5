#include "attacks/rows_cuda.h"
#include "attacks/square.h"

namespace robustcore::attacks {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    square_kernel(const __grid_constant__ SquareArgs args) {
  const int64_t elements = args.elements(), pixels = args.height * args.width;
  for_units(args.rows, [&](int64_t at) {
    const auto draw = SquareDraw::of<T>(args, at);
    const Ball<OneLane<T>> ball(at_row<T>(args.eps, at), args.low, args.high);
    const T radius = ball.radius();
    for (int64_t k = threadIdx.x; k < elements; k += blockDim.x) {
      const int64_t c = k / pixels, y = k % pixels / args.width, x = k % args.width;
      const T center = element<T>(args.x0, at, k);
      T value;
      if (draw.covers(y, x)) {
        value = square_value(ball, radius, center, draw.plus(draw.size ? c : c * args.width + x));
      } else {
        value = element<T>(args.best, at, k);
      }
      store_element(args.out, args.x0.dtype, args.place, at, k, value, center);
    }
  });
}

}  // namespace

void square_cuda(const SquareArgs& args, void* stream) {
  dispatch_arithmetic(args.x0.dtype, [&](auto tag) {
    launch(square_kernel<decltype(tag)>, args.rows, kThreads, stream, args);
  });
}

}  // namespace robustcore::attacks
