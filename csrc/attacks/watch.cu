#include "attacks/watch.h"
#include "attacks/watch_rows_cuda.h"

namespace robustcore::attacks {
namespace {

template <class T>
struct GradRow : CudaRow<T, GradRow<T>> {
  const WatchArgs& args;
  int64_t at;
  T batch[kAhead], now;

  __device__ GradRow(const WatchArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T, GradRow>(team, args_.elements), args(args_), at(row) {}
  __device__ void read(int64_t first, int64_t end) {
    read_batch(args.grad, args.grad.data, at, first, end, batch);
  }
  __device__ void take(int i) {
    now = batch[i];
  }
  __device__ T grad(int64_t, int) const {
    return now;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
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
