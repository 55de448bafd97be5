#include "attacks/loss.h"
#include "attacks/rows_cuda.h"

namespace robustcore::attacks {
namespace {

// A warp a row.
template <class T_>
struct LossRow {
  using T = T_;
  using L = OneLane<T>;
  const LossArgs& args;
  const Team& team;
  int64_t at;

  __device__ T z(int64_t k, int) const {
    return element<T>(args.logits, at, k);
  }
  __device__ T logit(int64_t k) const {
    return k >= 0 && k < args.classes ? z(k, 1) : T(NAN);
  }
  __device__ Top<T> top() const {
    Top<T> top;
    team.for_columns(args.classes, [&](int64_t k) {
      const T value = z(k, 1);
      if (value > top.v[3]) top.insert(value, static_cast<int32_t>(k));
    });
    RC_UNROLL
    for (int step = kWarp / 2; step > 0; step /= 2) {
      Top<T> other;
      RC_UNROLL
      for (int i = 0; i < 4; ++i) {
        other.v[i] = __shfl_xor_sync(0xFFFFFFFFu, top.v[i], step);
        other.k[i] = __shfl_xor_sync(0xFFFFFFFFu, top.k[i], step);
      }
      RC_UNROLL
      for (int i = 0; i < 4; ++i) top.insert(other.v[i], other.k[i]);
    }
    return top;
  }
  __device__ T largest() const {
    T most = 0, broken = 0;
    team.for_columns(args.classes, [&](int64_t k) {
      const T magnitude = abs<L>(z(k, 1));
      most = magnitude > most ? magnitude : most;
      if (magnitude != magnitude) broken = 1;
    });
    most = warp_max(most);
    return warp_max(broken) > T(0) ? T(NAN) : most;
  }
  template <class F>
  __device__ Sums sums(int64_t count, const F& f) const {
    struct Part {
      T a;
    };
    Sums total{0, 0};
    over_segments<Part>(
        team, true, count,
        [&](int64_t first, int in_segment) {
          T a = 0, b = 0;
          RC_ROLL
          for (int k = team.lane; k < in_segment; k += kWarp) f(first + k, 1, a, b);
          return Part{warp_sum(a)};
        },
        [&](Part part) { total.a += part.a; });
    return total;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    loss_kernel(const __grid_constant__ LossArgs args) {
  for_rows<1>(args.rows, [&](const Team& team, int64_t at, bool live) {
    LossRow<T> row{args, team, at};
    const RowLoss<LossRow<T>> loss(args, at, row);
    if (!live) return;
    if (team.writes()) {
      static_cast<T*>(args.value)[at] = loss.value;
      static_cast<T*>(args.ahead)[at] = loss.ahead;
    }
    team.for_columns(args.classes, [&](int64_t k) {
      const T slope = loss.slope.template operator()<OneLane<T>>(row.z(k, 1)) + loss.slope.extra(k);
      store_element(args.slope, args.place, at, k, slope, T(0));
    });
  });
}

}  // namespace

void attack_loss_cuda(const LossArgs& args, void* stream) {
  dispatch_arithmetic(args.logits.dtype, [&](auto tag) {
    launch_rows<1>(loss_kernel<decltype(tag)>, args.rows, stream, args);
  });
}

}  // namespace robustcore::attacks
