#include "common/rows_cuda.h"
#include "density/logsumexp.h"

namespace robustcore::density {
namespace {

// A row of a matrix plus its bias.
template <class T>
struct BiasedRow {
  LaneRow<T> row;
  const T* bias;

  __device__ BiasedRow(const StridedView& view, const void* bias_, int64_t n)
      : row(view, n), bias(static_cast<const T*>(bias_)) {}
  __device__ void read(int64_t first, int64_t end, T (&values)[kAhead]) const {
    row.read(first, end, values);
    if (!bias) return;
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kWarp < end) values[i] += bias[first + i * kWarp];
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    logsumexp_kernel(const __grid_constant__ LogsumexpArgs args) {
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  T* const max = static_cast<T*>(args.max);
  T* const sum = static_cast<T*>(args.sum);
  for_rows(team_size(chunk.classes), chunk.rows, [&](const Team& team, int64_t row, bool live) {
    const BiasedRow<T> z(chunk.logits, chunk.bias, row);
    Scaled<T> total{T(-INFINITY), T(0)};
    if (live && max && !args.first) total = {max[row], sum[row]};
    over_segments<Scaled<T>>(
        team, live, chunk.classes,
        [&](int64_t first, int count) {
          const int64_t end = first + count;
          T m = T(-INFINITY), s = 0, values[kAhead];
          RC_ROLL
          for (int k = team.lane; k < count; k += kWarp * kAhead) {
            z.read(first + k, end, values);
            RC_UNROLL
            for (int i = 0; i < kAhead; ++i) {
              if (k + i * kWarp < count) m = L::max(m, values[i]);
            }
          }
          m = warp_max(m);
          const T shift = shift_of(m);
          // Read again, from the cache: kept, a segment would take half the registers.
          RC_ROLL
          for (int k = team.lane; k < count; k += kWarp * kAhead) {
            z.read(first + k, end, values);
            RC_UNROLL
            for (int i = 0; i < kAhead; ++i) {
              if (k + i * kWarp < count) s += exp<L>(values[i] - shift);
            }
          }
          return Scaled<T>{m, warp_sum(s)};
        },
        [&](Scaled<T> part) { total = add_exp<L>(total, part); });
    if (!live || !team.writes()) return;
    if (max) max[row] = total.max, sum[row] = total.sum;
    static_cast<T*>(args.lse)[row] = lse_of<L>(total);
    const int64_t target = target_column(chunk, row);
    if (target >= 0 && target < chunk.classes) {
      T value[kAhead];
      z.read(target, target + 1, value);
      static_cast<T*>(args.target_logits)[row] = value[0];
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    logsumexp_backward_kernel(const __grid_constant__ LogsumexpBackwardArgs args) {
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  for_shared_rows(chunk.rows, chunk.classes, [&](const Team& team, int64_t row, bool live) {
    if (!live) return;
    const BiasedRow<T> z(chunk.logits, chunk.bias, row);
    const T grad = at_row<T>(args.grad, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    const int64_t target = target_column(chunk, row);
    team.for_batches(chunk.classes, [&](int64_t first) {
      T values[kAhead];
      z.read(first, chunk.classes, values);
      RC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        values[i] = grad * exp<L>(values[i] - shift);
        if (first + i * kWarp == target) values[i] += at_row<T>(args.grad_target, row);
      }
      write_batch(args.weights, chunk.logits.dtype, row * chunk.classes, first, chunk.classes,
                  values);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    logsumexp_double_backward_kernel(const __grid_constant__ LogsumexpDoubleBackwardArgs args) {
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  for_rows(team_size(chunk.classes), chunk.rows, [&](const Team& team, int64_t row, bool live) {
    const BiasedRow<T> z(chunk.logits, chunk.bias, row), v(args.v, args.v_bias, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    T zs[kAhead], vs[kAhead];
    T dot = live ? static_cast<T*>(args.dot)[row] : T(0);
    if (args.reduce) {
      dot = sum_over(team, live, chunk.classes, dot, [&](int64_t first, int64_t end, T s) {
        z.read(first, end, zs);
        v.read(first, end, vs);
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          if (first + i * kWarp < end) s = L::fma(exp<L>(zs[i] - shift), vs[i], s);
        }
        return s;
      });
      if (live && team.writes()) static_cast<T*>(args.dot)[row] = dot;
    }
    if (!live || !args.curvature) return;
    const T grad = at_row<T>(args.grad, row);
    const int64_t target = target_column(chunk, row), begin = row * chunk.classes;
    team.for_batches(chunk.classes, [&](int64_t first) {
      z.read(first, chunk.classes, zs);
      v.read(first, chunk.classes, vs);
      RC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        zs[i] = grad * exp<L>(zs[i] - shift);
        vs[i] = zs[i] * (vs[i] - dot);
        if (first + i * kWarp == target) zs[i] += at_row<T>(args.grad_target, row);
      }
      write_batch(args.curvature, chunk.logits.dtype, begin, first, chunk.classes, vs);
      if (args.weights) {
        write_batch(args.weights, chunk.logits.dtype, begin, first, chunk.classes, zs);
      }
    });
  });
}

}  // namespace

void logsumexp_cuda(const LogsumexpArgs& args, void* stream) {
  dispatch_arithmetic(args.chunk.logits.dtype, [&](auto tag) {
    launch_rows(logsumexp_kernel<decltype(tag)>, team_size(args.chunk.classes), args.chunk.rows,
                stream, args);
  });
}

void logsumexp_backward_cuda(const LogsumexpBackwardArgs& args, void* stream) {
  dispatch_arithmetic(args.chunk.logits.dtype, [&](auto tag) {
    launch_shared_rows(logsumexp_backward_kernel<decltype(tag)>, args.chunk.rows,
                       args.chunk.classes, stream, args);
  });
}

void logsumexp_double_backward_cuda(const LogsumexpDoubleBackwardArgs& args, void* stream) {
  dispatch_arithmetic(args.chunk.logits.dtype, [&](auto tag) {
    launch_rows(logsumexp_double_backward_kernel<decltype(tag)>, team_size(args.chunk.classes),
                args.chunk.rows, stream, args);
  });
}

}  // namespace robustcore::density
