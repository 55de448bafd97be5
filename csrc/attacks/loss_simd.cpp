#include "attacks/loss.h"
#include "attacks/rows_simd.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

template <class T>
struct LossRow : SimdRow<T> {
  using L = LanesOf<T>;
  const T* data;

  LossRow(const LossArgs& args, int64_t row, T* scratch)
      : SimdRow<T>{args.classes}, data(whole_row(args.logits, row, args.classes, scratch)) {}
  typename L::Float z(int64_t k, int n) const {
    return load<L>(data + k, n, T(-INFINITY));
  }
  T logit(int64_t k) const {
    return k >= 0 && k < this->elements ? data[k] : T(NAN);
  }
  Top<T> top() const {
    Top<T> top;
    for (int64_t k = 0; k < this->elements; ++k) {
      if (data[k] > top.v[3]) top.insert(data[k], static_cast<int32_t>(k));
    }
    return top;
  }
  T largest() const {
    T most = 0;
    bool numbers = true;
    for (int64_t k = 0; k < this->elements; ++k) {
      const T magnitude = abs<OneLane<T>>(data[k]);
      most = magnitude > most ? magnitude : most;
      numbers &= magnitude == magnitude;
    }
    return numbers ? most : T(NAN);
  }
};

template <class T>
void loss_rows(const LossArgs& args, T* scratch, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  for (int64_t at = begin; at < end; ++at) {
    LossRow<T> row(args, at, scratch);
    const RowLoss<LossRow<T>> loss(args, at, row);
    static_cast<T*>(args.value)[at] = loss.value;
    static_cast<T*>(args.ahead)[at] = loss.ahead;
    T* const slope = scratch + args.classes;
    for_lanes<L>(args.classes, [&](int64_t k, int n, int) {
      store<L>(slope + k, loss.slope.template operator()<L>(row.z(k, n)), n);
    });
    for (int i = 0; i < 5; ++i) {
      const int64_t k = loss.slope.k[i];
      if (k >= 0 && k < args.classes) slope[k] += loss.slope.c[i];
    }
    const RowOutput<T> to{args.slope, args.place, args.logits.dtype, at, nullptr};
    to.write(0, args.classes, [&](int64_t k, int n) { return load<L>(slope + k, n, T(0)); });
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(attack_loss)(const LossArgs& args, float* scratch, int64_t begin, int64_t end) {
  dispatch_arithmetic(args.logits.dtype, [&](auto tag) {
    loss_rows(args, reinterpret_cast<decltype(tag)*>(scratch), begin, end);
  });
}

}  // namespace robustcore::attacks
