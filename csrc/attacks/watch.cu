#include "attacks/watch.h"
#include "attacks/watch_rows_cuda.h"

namespace robustcore::attacks {
namespace {

template <class T>
struct GradRow : CudaRow<T, GradRow<T>, 1> {
  const WatchArgs& args;

  __device__ GradRow(const WatchArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T, GradRow, 1>(team, args_.elements, row), args(args_) {}
  __device__ Source source(int) const {
    return {&args.grad, args.grad.data};
  }
  __device__ T grad(int64_t, int) const {
    return this->staged(0);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    watch_kernel(const __grid_constant__ WatchArgs args) {
  for_rows<kWarpsPerBlock>(args.rows, [&](const BlockTeam& team, int64_t at, bool) {
    GradRow<T> row(args, team, at);
    const WatchedRow<GradRow<T>> watched(args, at, row);
    __syncthreads();  // all have read the state
    if (team.writes()) watched.store(args, at);
    if (watched.higher) copy_best(team, args, at);
  });
}

}  // namespace

void attack_watch_cuda(const WatchArgs& args, void* stream) {
  dispatch_arithmetic(args.is_double ? DType::kFloat64 : DType::kFloat32, [&](auto tag) {
    launch_rows<kWarpsPerBlock>(watch_kernel<decltype(tag)>, args.rows, stream, args);
  });
}

}  // namespace robustcore::attacks
