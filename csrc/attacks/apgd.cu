#include "attacks/apgd.h"
#include "attacks/step_rows_cuda.h"
#include "attacks/watch_rows_cuda.h"

namespace robustcore::attacks {
namespace {

template <class T, Norm kNorm>
__global__ void __launch_bounds__(kThreads, 2) apgd_kernel(const __grid_constant__ ApgdArgs args) {
  for_rows<kWarpsPerBlock>(args.watch.rows, [&](const BlockTeam& team, int64_t at, bool) {
    StepRow<T, kNorm> row(args.step, team, at);
    const WatchedRow<StepRow<T, kNorm>> watched(args.watch, at, row);
    const ApgdRow<T> apgd(args, at, watched);
    __syncthreads();  // all have read the state
    if (team.writes()) watched.store(args.watch, at), apgd.store(args, at);
    if (watched.higher) copy_best(team, args.watch, at);
    if (apgd.back) {
      if (watched.higher) __syncthreads();  // all of the best point has been written
      copy_row(team, args.watch, args.x, args.watch.best, at);
      row.start_from(args.watch.best, args.watch.best_grad);
    }
    step_row<kNorm>(args.step, apgd.numbers(args), row);
  });
}

}  // namespace

void apgd_step_cuda(const ApgdArgs& args, void* stream) {
  dispatch_arithmetic(args.step.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto kernel =
        args.step.norm == Norm::kLinf ? apgd_kernel<T, Norm::kLinf> : apgd_kernel<T, Norm::kL2>;
    launch_rows<kWarpsPerBlock>(kernel, args.step.rows, stream, args);
  });
}

}  // namespace robustcore::attacks
