#include "attacks/rows_cuda.h"
#include "attacks/step.h"

namespace robustcore::attacks {
namespace {

template <class T>
struct StepRow : CudaRow<T> {
  const StepArgs& args;
  int64_t at;

  __device__ StepRow(const StepArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T>{team, args_.elements}, args(args_), at(row) {}
  __device__ T x(int64_t k, int) const {
    return element<T>(args.x, at, k);
  }
  __device__ T x0(int64_t k, int) const {
    return element<T>(args.x0, at, k);
  }
  __device__ T grad(int64_t k, int) const {
    return element<T>(args.grad, at, k);
  }
  __device__ T previous(int64_t k, int) const {
    return element<T>(args.previous, at, k);
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) const {
    this->team.for_columns(count, [&](int64_t i) {
      const int64_t k = first + i;
      store_element(args.out, args.x.dtype, args.place, at, k, f(k, 1), x0(k, 1));
    });
  }
};

template <class T, Norm kNorm>
__global__ void __launch_bounds__(kThreads, 2) step_kernel(const __grid_constant__ StepArgs args) {
  for_rows<kWarpsPerBlock>(args.rows, [&](const BlockTeam& team, int64_t at, bool) {
    StepRow<T> row(args, team, at);
    step_row<kNorm>(args, at, row);
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
