#include "attacks/hyperplane.h"
#include "attacks/rows_simd.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

template <class T>
struct HyperplaneRow : SimdRow<T> {
  using L = LanesOf<T>;
  using Float = typename L::Float;
  RowOutput<T> to;
  const T *x_data, *w_data;

  HyperplaneRow(const HyperplaneArgs& args, int64_t row, T* scratch)
      : SimdRow<T>{args.elements},
        to{args.out, args.place, args.x.dtype, row, nullptr},
        x_data(whole_row(args.x, row, args.elements, scratch)),
        w_data(whole_row(args.w, row, args.elements, scratch + args.elements)) {}
  Float x(int64_t k, int n) const {
    return load<L>(x_data + k, n, T(0));
  }
  Float w(int64_t k, int n) const {
    return load<L>(w_data + k, n, T(0));
  }
  template <class F>
  void write(int64_t first, int64_t count, const F& f) const {
    to.write(first, count, f);
  }
};

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(hyperplane)(const HyperplaneArgs& args, float* scratch, int64_t begin,
                            int64_t end) {
  dispatch_arithmetic(args.x.dtype, [&](auto tag) {
    using T = decltype(tag);
    for_dual_norm(args.norm, [&](auto norm) {
      for (int64_t at = begin; at < end; ++at) {
        HyperplaneRow<T> row(args, at, reinterpret_cast<T*>(scratch));
        hyperplane_row<norm()>(args, at, row);
      }
    });
  });
}

}  // namespace robustcore::attacks
