#include "common/rows_cuda.h"
#include "density/logsumexp.h"

namespace robustcore::density {
namespace {

// A row of a matrix plus its bias.
template <class T>
class BiasedRow {
 public:
  __device__ BiasedRow(const StridedView& view, const void* bias_, int64_t n)
      : row(view, n), bias(static_cast<const T*>(bias_)) {}
  __device__ void read(int64_t first, int64_t end, T (&values)[kAhead]) const {
    row.read(first, end, values);
    add_bias(first, kWarp, end, values);
  }
  __device__ void read_batch(int64_t first, int step, int64_t end, T (&values)[kAhead]) const {
    row.read_batch(first, step, end, values);
    add_bias(first, step, end, values);
  }

 private:
  __device__ void add_bias(int64_t first, int step, int64_t end, T (&values)[kAhead]) const {
    if (!bias) return;
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * step < end) values[i] += bias[first + i * step];
    }
  }

  LaneRow<T> row;
  const T* bias;
};

template <class T>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    logsumexp_kernel(const __grid_constant__ LogsumexpArgs args) {
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  T* const max = static_cast<T*>(args.max);
  T* const sum = static_cast<T*>(args.sum);
  const Pass pass = args.plan.pass;
  const int warps = team_size(args.plan, chunk.classes);
  for_shared_rows(warps, chunk.rows, [&](const Team& team, int64_t row, bool live) {
    const BiasedRow<T> z(chunk.logits, chunk.bias, row);
    Scaled<T> total{T(-INFINITY), T(0)};
    if (live && max && !args.first) total = {max[row], sum[row]};
    auto* const parts = parts_of<Scaled<T>>(args.plan, row, chunk.classes);
    const auto compute = [&](int64_t first, int count) {
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
    };
    if (pass == Pass::kJoin) {
      total = join_scaled(team, parts, segments_of(chunk.classes), total,
                          [](T m, T max) { return exp_weight<L>(m, max); });
    } else {
      over_segments<Scaled<T>>(
          team, live, chunk.classes, compute,
          [&](Scaled<T> part) { total = add_exp<L>(total, part); },
          pass == Pass::kSegments ? parts : nullptr);
    }
    if (!live || !team.writes() || pass == Pass::kSegments) return;
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
  const int warps = team_size(chunk.classes);
  for_shared_rows(warps, chunk.rows, [&](const Team& team, int64_t row, bool live) {
    if (!live) return;
    const BiasedRow<T> z(chunk.logits, chunk.bias, row);
    const T grad = at_row<T>(args.grad, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    const int64_t target = target_column(chunk, row);
    team.for_batches(chunk.classes, args.plan.quads, [&](int64_t first, int step) {
      T values[kAhead];
      z.read_batch(first, step, chunk.classes, values);
      RC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        values[i] = grad * exp<L>(values[i] - shift);
        if (first + i * step == target) values[i] += at_row<T>(args.grad_target, row);
      }
      write_batch(args.weights, chunk.logits.dtype, row * chunk.classes, first, step, chunk.classes,
                  values);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    logsumexp_double_backward_kernel(const __grid_constant__ LogsumexpDoubleBackwardArgs args) {
  using L = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  const Pass pass = args.plan.pass;
  const int warps = team_size(args.plan, chunk.classes);
  for_shared_rows(warps, chunk.rows, [&](const Team& team, int64_t row, bool live) {
    const BiasedRow<T> z(chunk.logits, chunk.bias, row), v(args.v, args.v_bias, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    T zs[kAhead], vs[kAhead];
    T dot = live ? static_cast<T*>(args.dot)[row] : T(0);
    if (pass != Pass::kRest) {
      const auto add = [&](int64_t first, int64_t end, Sums2<T>& s) {
        z.read(first, end, zs);
        v.read(first, end, vs);
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          if (first + i * kWarp < end) s.a = L::fma(exp<L>(zs[i] - shift), vs[i], s.a);
        }
      };
      dot = sums_over<T>(args.plan, team, row, live, chunk.classes, {dot, T(0)}, add).a;
      if (pass == Pass::kSegments) return;
      if (live && team.writes()) static_cast<T*>(args.dot)[row] = dot;
    }
    if (!live || !args.curvature || pass == Pass::kJoin) return;
    const T grad = at_row<T>(args.grad, row);
    const int64_t target = target_column(chunk, row), begin = row * chunk.classes;
    team.for_batches(chunk.classes, args.plan.quads, [&](int64_t first, int step) {
      z.read_batch(first, step, chunk.classes, zs);
      v.read_batch(first, step, chunk.classes, vs);
      RC_UNROLL
      for (int i = 0; i < kAhead; ++i) {
        zs[i] = grad * exp<L>(zs[i] - shift);
        vs[i] = zs[i] * (vs[i] - dot);
        if (first + i * step == target) zs[i] += at_row<T>(args.grad_target, row);
      }
      write_batch(args.curvature, chunk.logits.dtype, begin, first, step, chunk.classes, vs);
      if (args.weights) {
        write_batch(args.weights, chunk.logits.dtype, begin, first, step, chunk.classes, zs);
      }
    });
  });
}

}  // namespace

void logsumexp_cuda(const LogsumexpArgs& args, void* stream) {
  dispatch_arithmetic(args.chunk.logits.dtype, [&](auto tag) {
    launch_summed_rows(logsumexp_kernel<decltype(tag)>, args.chunk.rows, args.chunk.classes, stream,
                       args, false);
  });
}

void logsumexp_backward_cuda(const LogsumexpBackwardArgs& arguments, void* stream) {
  LogsumexpBackwardArgs args = arguments;
  const LogitsChunk& chunk = args.chunk;
  args.plan.quads = in_quads(chunk.logits) && in_quads(args.weights, chunk.classes);
  dispatch_arithmetic(chunk.logits.dtype, [&](auto tag) {
    launch_shared_rows(logsumexp_backward_kernel<decltype(tag)>, chunk.rows, chunk.classes, stream,
                       args);
  });
}

void logsumexp_double_backward_cuda(const LogsumexpDoubleBackwardArgs& arguments, void* stream) {
  LogsumexpDoubleBackwardArgs args = arguments;
  const LogitsChunk& chunk = args.chunk;
  args.plan.quads = in_quads(chunk.logits) && in_quads(args.v) &&
                    in_quads(args.curvature, chunk.classes) &&
                    in_quads(args.weights, chunk.classes);
  dispatch_arithmetic(chunk.logits.dtype, [&](auto tag) {
    const auto kernel = logsumexp_double_backward_kernel<decltype(tag)>;
    if (args.reduce) {
      launch_summed_rows(kernel, chunk.rows, chunk.classes, stream, args, args.curvature);
    } else {
      launch_shared_rows(kernel, chunk.rows, chunk.classes, stream, args);
    }
  });
}

}  // namespace robustcore::density
