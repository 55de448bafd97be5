#include "attacks/hyperplane.h"
#include "attacks/rows_cuda.h"

namespace robustcore::attacks {
namespace {

template <class T>
struct HyperplaneRow : CudaRow<T, HyperplaneRow<T>, 2> {
  const HyperplaneArgs& args;

  __device__ HyperplaneRow(const HyperplaneArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T, HyperplaneRow, 2>(team, args_.elements, row), args(args_) {}
  __device__ Source source(int s) const {
    const StridedView& view = s == 0 ? args.x : args.w;
    return {&view, view.data};
  }
  __device__ T x(int64_t, int) const {
    return this->staged(0);
  }
  __device__ T w(int64_t, int) const {
    return this->staged(1);
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) {
    this->write_rounded(args.out, args.place, first, count, f, [](int64_t, int) { return T(0); });
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
