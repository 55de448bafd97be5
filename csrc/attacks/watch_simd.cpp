#include <cstring>

#include "attacks/rows_simd.h"
#include "attacks/watch.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

template <class T>
struct GradRow : SimdRow<T> {
  using L = LanesOf<T>;
  const T* data;

  GradRow(const WatchArgs& args, int64_t row, T* scratch)
      : SimdRow<T>{args.elements}, data(whole_row(args.grad, row, args.elements, scratch)) {}
  typename L::Float grad(int64_t k, int n) const {
    return load<L>(data + k, n, T(0));
  }
};

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(attack_watch)(const WatchArgs& args, float* scratch, int64_t begin, int64_t end) {
  const int64_t bytes = args.elements * args.element_size;
  const auto copy = [&](void* to, const void* from, int64_t at) {
    std::memcpy(static_cast<char*>(to) + at * bytes, static_cast<const char*>(from) + at * bytes,
                bytes);
  };
  dispatch_arithmetic(args.is_double ? DType::kFloat64 : DType::kFloat32, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t at = begin; at < end; ++at) {
      GradRow<T> row(args, at, reinterpret_cast<T*>(scratch));
      const WatchedRow<GradRow<T>> watched(args, at, row);
      watched.store(args, at);
      if (!watched.higher) continue;
      copy(args.best, args.x, at);
      if (args.best_grad) copy(args.best_grad, args.grad.data, at);
    }
  });
}

}  // namespace robustcore::attacks
