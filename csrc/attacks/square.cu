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
      store_element(args.out, args.x0.dtype, args.place, at, k, value, center);
    }
  });
}

template <class T>
struct PeaksRow : CudaRow<T, PeaksRow<T>> {
  const SquareArgs& args;
  int64_t at;

  __device__ PeaksRow(const SquareArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T, PeaksRow>(team, args_.elements()), args(args_), at(row) {}
  // A window's elements are in no batch.
  __device__ void read(int64_t, int64_t) const {}
  __device__ void take(int) const {}
  __device__ T x0(int64_t k) const {
    return element<T>(args.x0, at, k);
  }
  __device__ T best(int64_t k) const {
    return element<T>(args.best, at, k);
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) {
    this->write_rounded(
        args.out, args.place, at, first, count, [&](int64_t k, int) { return f(k); },
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
