// Rows of a step on the CPU.
#pragma once

#include "attacks/rows_simd.h"
#include "attacks/step.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

// `scratch` holds scratch_elements().
template <class T>
struct StepRow : SimdRow<T> {
  using L = LanesOf<T>;
  using Float = typename L::Float;
  const StepArgs& args;
  int64_t at;
  T* scratch;
  const T *x_data, *x0_data, *grad_data, *previous_data;

  StepRow(const StepArgs& args_, int64_t row, T* scratch_)
      : SimdRow<T>{args_.elements},
        args(args_),
        at(row),
        scratch(scratch_),
        x0_data(whole_row(args_.x0, row, args_.elements, scratch + args_.elements)),
        previous_data(
            whole_row(args_.previous, row, args_.elements, scratch + 3 * args_.elements)) {
    start_from(args_.x.data, args_.grad.data);
  }
  // Points and gradients that lie as the step's.
  void start_from(const void* x, const void* grad) {
    StridedView from = args.x, along = args.grad;
    from.data = x, along.data = grad;
    x_data = whole_row(from, at, args.elements, scratch);
    grad_data = whole_row(along, at, args.elements, scratch + 2 * args.elements);
  }
  Float x(int64_t k, int n) const {
    return load<L>(x_data + k, n, T(0));
  }
  Float x0(int64_t k, int n) const {
    return load<L>(x0_data + k, n, T(0));
  }
  Float grad(int64_t k, int n) const {
    return load<L>(grad_data + k, n, T(0));
  }
  Float previous(int64_t k, int n) const {
    return load<L>(previous_data + k, n, T(0));
  }

  template <class F>
  void write(int64_t first, int64_t count, const F& f) const {
    const RowOutput<T> to{args.out, args.place, args.x.dtype, at, x0_data};
    to.write(first, count, f);
  }
};

}  // namespace
}  // namespace RC_ISA
}  // namespace robustcore::attacks
