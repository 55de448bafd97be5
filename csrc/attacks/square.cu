#include "attacks/rows_cuda.h"
#include "attacks/square_peaks.h"

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
      store_element(args.out, args.place, at, k, value, center);
    }
  });
}

template <class T>
struct PeaksRow : CudaRow<T, PeaksRow<T>, 0> {  // a window's elements are in no batch
  const SquareArgs& args;

  __device__ PeaksRow(const SquareArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T, PeaksRow, 0>(team, args_.elements(), row), args(args_) {}
  __device__ T x0(int64_t k) const {
    return element<T>(args.x0, this->at, k);
  }
  __device__ T best(int64_t k) const {
    return element<T>(args.best, this->at, k);
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) {
    this->write_rounded(
        args.out, args.place, first, count, [&](int64_t k, int) { return f(k); },
        [&](int64_t k, int) { return x0(k); });
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    peaks_kernel(const __grid_constant__ SquareArgs args) {
  for_rows<kWarpsPerBlock>(args.rows, [&](const BlockTeam& team, int64_t at, bool) {
    const auto draw = SquareDraw::of<T>(args, at);
    PeaksRow<T> row(args, team, at);
    SquarePeaks<T, PeaksRow<T>>(args, draw, at, row).run();
  });
}

}  // namespace

void square_cuda(const SquareArgs& args, void* stream) {
  dispatch_arithmetic(args.x0.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (args.norm == Norm::kLinf) {
      launch(square_kernel<T>, args.rows, kThreads, stream, args);
      return;
    }
    launch_rows<kWarpsPerBlock>(peaks_kernel<T>, args.rows, stream, args);
  });
}

}  // namespace robustcore::attacks
