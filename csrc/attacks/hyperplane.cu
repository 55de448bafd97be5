#include "attacks/hyperplane.h"
#include "attacks/rows_cuda.h"

namespace robustcore::attacks {
namespace {

template <class T>
struct HyperplaneRow : CudaRow<T> {
  const HyperplaneArgs& args;
  int64_t at;

  __device__ HyperplaneRow(const HyperplaneArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T>{team, args_.elements}, args(args_), at(row) {}
  __device__ T x(int64_t k, int) const {
    return element<T>(args.x, at, k);
  }
  __device__ T w(int64_t k, int) const {
    return element<T>(args.w, at, k);
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) const {
    this->team.for_columns(count, [&](int64_t i) {
      store_element(args.out, args.x.dtype, args.place, at, first + i, f(first + i, 1), T(0));
    });
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
