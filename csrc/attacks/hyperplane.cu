#include "attacks/hyperplane.h"
#include "attacks/rows_cuda.h"

namespace robustcore::attacks {
namespace {

template <class T>
struct HyperplaneRow : CudaRow<T, HyperplaneRow<T>> {
  const HyperplaneArgs& args;
  int64_t at;
  T x_batch[kAhead], w_batch[kAhead], x_now, w_now;

  __device__ HyperplaneRow(const HyperplaneArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T, HyperplaneRow>(team, args_.elements), args(args_), at(row) {}
  __device__ void read(int64_t first, int64_t end) {
    read_batch(args.x, args.x.data, at, first, end, x_batch);
    read_batch(args.w, args.w.data, at, first, end, w_batch);
  }
  __device__ void take(int i) {
    x_now = x_batch[i], w_now = w_batch[i];
  }
  __device__ T x(int64_t, int) const {
    return x_now;
  }
  __device__ T w(int64_t, int) const {
    return w_now;
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) {
    this->write_rounded(args.out, args.place, at, first, count, f,
                        [](int64_t, int) { return T(0); });
  }
};

template <class T, Norm kNorm>
__global__ void __launch_bounds__(kThreads, 2)
    hyperplane_kernel(const __grid_constant__ HyperplaneArgs args) {
  for_rows<kWarpsPerBlock>(args.rows, [&](const BlockTeam& team, int64_t at, bool) {
    HyperplaneRow<T> row(args, team, at);
    hyperplane_row<kNorm>(args, at, row);
  });
}

}  // namespace

void hyperplane_cuda(const HyperplaneArgs& args, void* stream) {
  dispatch_arithmetic(args.x.dtype, [&](auto tag) {
    for_dual_norm(args.norm, [&](auto norm) {
      launch_rows<kWarpsPerBlock>(hyperplane_kernel<decltype(tag), norm()>, args.rows, stream,
                                  args);
    });
  });
}

}  // namespace robustcore::attacks
