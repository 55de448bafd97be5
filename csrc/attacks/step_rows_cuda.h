// Rows of a step on CUDA.
#pragma once

#include "attacks/rows_cuda.h"
#include "attacks/step.h"

namespace robustcore::attacks {
namespace {

// l0 asks for all channels of a pixel, which are in no batch.
template <class T, Norm kNorm>
struct StepRow : CudaRow<T, StepRow<T, kNorm>, kNorm == Norm::kL0 ? 0 : 4> {
  using Base = CudaRow<T, StepRow, kNorm == Norm::kL0 ? 0 : 4>;
  const StepArgs& args;
  const void *x_data, *grad_data;

  __device__ StepRow(const StepArgs& args_, const BlockTeam& team, int64_t row)
      : Base(team, args_.elements, row),
        args(args_),
        x_data(args_.x.data),
        grad_data(args_.grad.data) {}
  // Other points and gradients that lie as the step's.
  __device__ void start_from(const void* x, const void* grad) {
    x_data = x, grad_data = grad;
  }
  __device__ Source source(int s) const {
    return s == 0   ? Source{&args.x, x_data}
           : s == 1 ? Source{&args.x0, args.x0.data}
           : s == 2 ? Source{&args.grad, grad_data}
                    : Source{&args.previous, args.previous.data};
  }
  __device__ T x(int64_t k, int) const {
    return value(0, k);
  }
  __device__ T x0(int64_t k, int) const {
    return value(1, k);
  }
  __device__ T grad(int64_t k, int) const {
    return value(2, k);
  }
  __device__ T previous(int64_t k, int) const {
    return value(3, k);
  }
  template <class F>
  __device__ void write(int64_t first, int64_t count, const F& f) {
    this->write_rounded(args.out, args.place, first, count, f,
                        [&](int64_t k, int n) { return x0(k, n); });
  }

 private:
  __device__ T value(int s, int64_t k) const {
    if constexpr (kNorm == Norm::kL0) {
      return element<T>(*source(s).view, this->at, k);
    } else {
      return this->staged(s);
    }
  }
};

}  // namespace
}  // namespace robustcore::attacks
