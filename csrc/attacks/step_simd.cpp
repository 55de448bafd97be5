#include "attacks/rows_simd.h"
#include "attacks/step.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

template <class T>
struct StepRow : SimdRow<T> {
  using L = LanesOf<T>;
  using Float = typename L::Float;
  const StepArgs& args;
  int64_t at;
  const T *x_data, *x0_data, *grad_data, *previous_data;

  StepRow(const StepArgs& args_, int64_t row, T* scratch)
      : SimdRow<T>{args_.elements},
        args(args_),
        at(row),
        x_data(whole_row(args_.x, row, args_.elements, scratch)),
        x0_data(whole_row(args_.x0, row, args_.elements, scratch + args_.elements)),
        grad_data(whole_row(args_.grad, row, args_.elements, scratch + 2 * args_.elements)),
        previous_data(
            whole_row(args_.previous, row, args_.elements, scratch + 3 * args_.elements)) {}
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

void RC_VARIANT(step)(const StepArgs& args, float* scratch, int64_t begin, int64_t end) {
  dispatch_arithmetic(args.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_norm(args.norm, [&](auto norm) {
      for (int64_t at = begin; at < end; ++at) {
        StepRow<T> row(args, at, reinterpret_cast<T*>(scratch));
        step_row<norm()>(args, at, row);
      }
    });
  });
}

}  // namespace robustcore::attacks
