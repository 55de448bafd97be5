#include "attacks/step_rows_cuda.h"

namespace robustcore::attacks {
namespace {

template <class T, Norm kNorm>
__global__ void __launch_bounds__(kThreads, 2) step_kernel(const __grid_constant__ StepArgs args) {
  for_rows<kWarpsPerBlock>(args.rows, [&](const BlockTeam& team, int64_t at, bool) {
    StepRow<T, kNorm> row(args, team, at);
    step_row<kNorm>(args, numbers_of<T>(args, at), row);
  });
}

}  // namespace

void step_cuda(const StepArgs& args, void* stream) {
  dispatch_arithmetic(args.x.dtype, [&](auto tag) {
    for_norm(args.norm, [&](auto norm) {
      launch_rows<kWarpsPerBlock>(step_kernel<decltype(tag), norm()>, args.rows, stream, args);
    });
  });
}

}  // namespace robustcore::attacks
