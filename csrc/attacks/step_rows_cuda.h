// Rows of a step on CUDA.
#pragma once

#include "attacks/rows_cuda.h"
#include "attacks/step.h"

namespace robustcore::attacks {
namespace {

// l0 asks for all channels of a pixel, which are in no batch.
template <class T, Norm kNorm>
struct StepRow : CudaRow<T, StepRow<T, kNorm>> {
  const StepArgs& args;
  int64_t at;
  const void *x_data, *grad_data;
  T x_batch[kAhead], x0_batch[kAhead], grad_batch[kAhead], previous_batch[kAhead];
  T x_now, x0_now, grad_now, previous_now;

  __device__ StepRow(const StepArgs& args_, const BlockTeam& team, int64_t row)
      : CudaRow<T, StepRow>(team, args_.elements),
        args(args_),
        at(row),
        x_data(args_.x.data),
        grad_data(args_.grad.data) {}
  // Other points and gradients that lie as the step's.
  __device__ void start_from(const void* x, const void* grad) {
    x_data = x, grad_data = grad;
  }
  __device__ void read(int64_t first, int64_t end) {
    if constexpr (kNorm != Norm::kL0) {
      read_batch(args.x, x_data, at, first, end, x_batch);
      read_batch(args.x0, args.x0.data, at, first, end, x0_batch);
      read_batch(args.grad, grad_data, at, first, end, grad_batch);
      read_batch(args.previous, args.previous.data, at, first, end, previous_batch);
    }
  }
  __device__ void take(int i) {
    x_now = x_batch[i], x0_now = x0_batch[i];
    grad_now = grad_batch[i], previous_now = previous_batch[i];
  }
  __device__ T x(int64_t k, int) const {
    return value(args.x, x_now, k);
  }
  __device__ T x0(int64_t k, int) const {
    return value(args.x0, x0_now, k);
  }
  __device__ T grad(int64_t k, int) const {
    return value(args.grad, grad_now, k);
  }
  __device__ T previous(int64_t k, int) const {
    return value(args.previous, previous_now, k);
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) {
    this->write_rounded(args.out, args.place, at, first, count, f,
                        [&](int64_t k, int n) { return x0(k, n); });
  }

 private:
  __device__ T value(const StridedView& view, T now, int64_t k) const {
    return kNorm == Norm::kL0 ? element<T>(view, at, k) : now;
  }
};

}  // namespace
}  // namespace robustcore::attacks
