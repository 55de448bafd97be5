#include "attacks/rows_cuda.h"
#include "attacks/watch.h"

namespace robustcore::attacks {
namespace {

template <class T>
struct GradRow : CudaRow<T> {
  const WatchArgs& args;
  int64_t at;

  __device__ GradRow(const WatchArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T>{team, args_.elements}, args(args_), at(row) {}
  __device__ T grad(int64_t k, int) const {
    return element<T>(args.grad, at, k);
  }
};

// Elements are only copied: as words of the largest size that all of them are made of.
template <class Word>
__device__ void copy_row(const BlockTeam& team, const WatchArgs& args, int64_t at) {
  const int64_t words = args.elements * args.element_size / static_cast<int64_t>(sizeof(Word));
  team.for_columns(words, [&](int64_t i) {
    const int64_t k = at * words + i;
    static_cast<Word*>(args.best)[k] = static_cast<const Word*>(args.x)[k];
    if (args.best_grad) {
      static_cast<Word*>(args.best_grad)[k] = static_cast<const Word*>(args.grad.data)[k];
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    watch_kernel(const __grid_constant__ WatchArgs args) {
  for_rows<kWarpsPerBlock>(args.rows, [&](const BlockTeam& team, int64_t at, bool) {
    GradRow<T> row(args, team, at);
    const WatchedRow<GradRow<T>> watched(args, at, row);
    __syncthreads();  // all have read the state
    if (team.writes()) watched.store(args, at);
    if (!watched.higher) return;
    args.element_size == 2 ? copy_row<uint16_t>(team, args, at)
                           : copy_row<uint32_t>(team, args, at);
  });
}

}  // namespace

void attack_watch_cuda(const WatchArgs& args, void* stream) {
  dispatch_arithmetic(args.is_double ? DType::kFloat64 : DType::kFloat32, [&](auto tag) {
    launch_rows<kWarpsPerBlock>(watch_kernel<decltype(tag)>, args.rows, stream, args);
  });
}

}  // namespace robustcore::attacks
