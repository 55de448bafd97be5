#include "common/rows_cuda.h"
#include "density/logsumexp.h"

namespace robustcore::density {
namespace {

constexpr int kSteps = kSegment / kWarp;  // elements of a segment in each lane

// A row of a matrix of In, plus its bias.
template <class In>
struct BiasedRow {
  using T = Arithmetic<In>;
  const In* row;
  int64_t stride;
  const T* bias;

  __device__ BiasedRow(const StridedView& view, const void* bias_, int64_t n)
      : row(static_cast<const In*>(view.data) + n * view.image_stride),
        stride(view.strides[0]),
        bias(static_cast<const T*>(bias_)) {}
  __device__ T operator()(int64_t k) const {
    const T v = convert<T>(row[k * stride]);
    return bias ? v + bias[k] : v;
  }
};

template <class In, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    logsumexp_kernel(const __grid_constant__ LogsumexpArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  T* const max = static_cast<T*>(args.max);
  T* const sum = static_cast<T*>(args.sum);
  for_rows<kWarps>(chunk.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const BiasedRow<In> z(chunk.logits, chunk.bias, row);
    Scaled<T> total{T(-INFINITY), T(0)};
    if (live && max && !args.first) total = {max[row], sum[row]};
    over_segments<kWarps, Scaled<T>>(
        team, live, chunk.classes,
        [&](int64_t first, int count) {
          T values[kSteps], m = T(-INFINITY), s = 0;
          RC_UNROLL
          for (int i = 0; i < kSteps; ++i) {
            const int k = i * kWarp + team.lane;
            values[i] = k < count ? z(first + k) : T(-INFINITY);
            m = L::max(m, values[i]);
          }
          m = warp_max(m);
          const T shift = shift_of(m);
          RC_UNROLL
          for (int i = 0; i < kSteps; ++i) {
            if (i * kWarp < count) s += exp<L>(values[i] - shift);
          }
          return Scaled<T>{m, warp_sum(s)};
        },
        [&](Scaled<T> part) { total = add_exp<L>(total, part); });
    if (!live || !team.writes()) return;
    if (max) max[row] = total.max, sum[row] = total.sum;
    static_cast<T*>(args.lse)[row] = lse_of<L>(total);
    const int64_t target = target_column(chunk, row);
    if (target >= 0 && target < chunk.classes) {
      static_cast<T*>(args.target_logits)[row] = z(target);
    }
  });
}

template <class In, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    logsumexp_backward_kernel(const __grid_constant__ LogsumexpBackwardArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  for_rows<kWarps>(chunk.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    if (!live) return;
    const BiasedRow<In> z(chunk.logits, chunk.bias, row);
    const T grad = at_row<T>(args.grad, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    const int64_t target = target_column(chunk, row);
    In* const out = static_cast<In*>(args.weights) + row * chunk.classes;
    team.for_columns(chunk.classes, [&](int64_t k) {
      T weight = grad * exp<L>(z(k) - shift);
      if (k == target) weight += at_row<T>(args.grad_target, row);
      out[k] = convert<In>(weight);
    });
  });
}

template <class In, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    logsumexp_double_backward_kernel(const __grid_constant__ LogsumexpDoubleBackwardArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  for_rows<kWarps>(chunk.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const BiasedRow<In> z(chunk.logits, chunk.bias, row);
    const BiasedRow<In> v(args.v, args.v_bias, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    T dot = live ? static_cast<T*>(args.dot)[row] : T(0);
    if (args.reduce) {
      dot = sum_over(team, live, chunk.classes, dot,
                     [&](int64_t k, T s) { return L::fma(exp<L>(z(k) - shift), v(k), s); });
      if (live && team.writes()) static_cast<T*>(args.dot)[row] = dot;
    }
    if (!live || !args.curvature) return;
    const T grad = at_row<T>(args.grad, row);
    const int64_t target = target_column(chunk, row);
    In* const curvature = static_cast<In*>(args.curvature) + row * chunk.classes;
    In* const weights = static_cast<In*>(args.weights) + row * chunk.classes;
    team.for_columns(chunk.classes, [&](int64_t k) {
      T weight = grad * exp<L>(z(k) - shift);
      curvature[k] = convert<In>(weight * (v(k) - dot));
      if (!args.weights) return;
      if (k == target) weight += at_row<T>(args.grad_target, row);
      weights[k] = convert<In>(weight);
    });
  });
}

// Calls body(tag, warps) with the dtype and how many warps share a row.
template <class Body>
void for_kind(const LogitsChunk& chunk, const Body& body) {
  dispatch(chunk.logits.dtype,
           [&](auto tag) { for_team(chunk.classes, [&](auto warps) { body(tag, warps); }); });
}

}  // namespace

void logsumexp_cuda(const LogsumexpArgs& args, void* stream) {
  for_kind(args.chunk, [&](auto tag, auto warps) {
    launch_rows<warps()>(logsumexp_kernel<decltype(tag), warps()>, args.chunk.rows, stream, args);
  });
}

void logsumexp_backward_cuda(const LogsumexpBackwardArgs& args, void* stream) {
  for_kind(args.chunk, [&](auto tag, auto warps) {
    launch_rows<warps()>(logsumexp_backward_kernel<decltype(tag), warps()>, args.chunk.rows, stream,
                         args);
  });
}

void logsumexp_double_backward_cuda(const LogsumexpDoubleBackwardArgs& args, void* stream) {
  for_kind(args.chunk, [&](auto tag, auto warps) {
    launch_rows<warps()>(logsumexp_double_backward_kernel<decltype(tag), warps()>, args.chunk.rows,
                         stream, args);
  });
}

}  // namespace robustcore::density
