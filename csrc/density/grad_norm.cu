#include "common/rows_cuda.h"
#include "density/grad_norm.h"

namespace robustcore::density {
namespace {

// The kind of norm and the dtype are known when a kernel runs: one branch on each for a batch of
// elements costs less than a kernel for each.

template <class T>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    grad_norm_kernel(const __grid_constant__ GradNormArgs args) {
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  const Pass pass = args.plan.pass;
  const int warps = team_size(args.plan, args.elements);
  for_shared_rows(warps, args.rows, [&](const Team& team, int64_t row, bool live) {
    const LaneRow<T> g(args.grad, row);
    Scaled<T> total{T(0), T(0)};
    auto* const parts = parts_of<Scaled<T>>(args.plan, row, args.elements);
    const auto compute = [&](int64_t first, int count) {
      const int64_t end = first + count;
      T m = 0, s = 0, values[kAhead];
      RC_ROLL
      for (int k = team.lane; k < count; k += kWarp * kAhead) {
        g.read(first + k, end, values);
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) m = L::max(m, abs<L>(values[i]));
      }
      m = warp_max(m);
      const T scale = scale_of(m);
      RC_ROLL
      for (int k = team.lane; k < count; k += kWarp * kAhead) {
        g.read(first + k, end, values);
        for_norm(args.p, [&](auto norm) {
          RC_UNROLL
          for (int i = 0; i < kAhead; ++i) s += norm_term<L, norm()>(abs<L>(values[i]) / scale, p);
        });
      }
      return Scaled<T>{m, warp_sum(s)};
    };
    if (pass == Pass::kJoin) {
      total = join_scaled(team, parts, segments_of(args.elements), total, [&](T m, T max) {
        T weight;
        for_norm(args.p, [&](auto norm) { weight = power_weight<L, norm()>(m, max, p); });
        return weight;
      });
    } else {
      const auto add = [&](Scaled<T> part) {
        for_norm(args.p, [&](auto norm) { total = add_power<L, norm()>(total, part, p); });
      };
      over_segments<Scaled<T>>(team, live, args.elements, compute, add,
                               pass == Pass::kSegments ? parts : nullptr);
    }
    if (!live || !team.writes() || pass == Pass::kSegments) return;
    for_norm(args.p,
             [&](auto norm) { static_cast<T*>(args.norm)[row] = norm_of<L, norm()>(total, p); });
  });
}

// At infinity a row's dual is shared by the elements that reach the maximum, each of which
// counts 1.
template <class T>
__device__ T sharers(int64_t first, int64_t end, const T (&values)[kAhead], T scale) {
  using L = OneLane<T>;
  T count = 0;
  RC_UNROLL
  for (int i = 0; i < kAhead; ++i) {
    if (first + i * kWarp < end) count += abs<L>(dual<L, Norm::kInf>(values[i], scale, T(0)));
  }
  return count;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kSumBlocks<T>)
    grad_norm_backward_kernel(const __grid_constant__ GradNormBackwardArgs args) {
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  const Pass pass = args.plan.pass;
  const int warps = team_size(args.plan, args.elements);
  for_shared_rows(warps, args.rows, [&](const Team& team, int64_t row, bool live) {
    const LaneRow<T> g(args.grad, row);
    const T scale = divisor(at_row<T>(args.norm, row));
    // Where a pass counted them, at the beginning of the row's parts.
    auto* const counted = parts_of<Sums2<T>>(args.plan, row, args.elements);
    T shared = 1;
    if (args.p == INFINITY && pass == Pass::kRest) {
      shared = counted->b;
    } else if (args.p == INFINITY) {
      const auto count = [&](int64_t first, int64_t end, Sums2<T>& s) {
        T values[kAhead];
        g.read(first, end, values);
        s.b += sharers(first, end, values, scale);
      };
      shared = sums_over<T>(args.plan, team, row, live, args.elements, {}, count).b;
    }
    if (live && pass == Pass::kJoin && team.writes()) counted->b = shared;
    if (!live || pass == Pass::kSegments || pass == Pass::kJoin) return;
    const T upstream = at_row<T>(args.upstream, row) / divisor(shared);
    team.for_batches(args.elements, args.plan.quads, [&](int64_t first, int step) {
      T values[kAhead];
      g.read_batch(first, step, args.elements, values);
      for_norm(args.p, [&](auto norm) {
        RC_UNROLL
        for (T& v : values) v = upstream * dual<L, norm()>(v, scale, p);
      });
      write_batch(args.dual, args.grad.dtype, row * args.elements, first, step, args.elements,
                  values);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    grad_norm_double_backward_kernel(const __grid_constant__ GradNormDoubleBackwardArgs args) {
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  const Pass pass = args.plan.pass;
  const int warps = team_size(args.plan, args.elements);
  for_shared_rows(warps, args.rows, [&](const Team& team, int64_t row, bool live) {
    const LaneRow<T> g(args.grad, row), v(args.v, row);
    const T norm = at_row<T>(args.norm, row), scale = divisor(norm);
    T* const dots = static_cast<T*>(args.dot);
    T gs[kAhead], vs[kAhead], dot;
    if (pass == Pass::kRest) {
      dot = dots[row];
    } else {
      const auto add = [&](int64_t first, int64_t end, Sums2<T>& s) {
        g.read(first, end, gs);
        v.read(first, end, vs);
        for_norm(args.p, [&](auto norm) {
          RC_UNROLL
          for (int i = 0; i < kAhead; ++i) {
            if (first + i * kWarp < end) s.a = L::fma(dual<L, norm()>(gs[i], scale, p), vs[i], s.a);
          }
        });
        if (args.p == INFINITY) s.b += sharers(first, end, gs, scale);
      };
      const auto sums = sums_over<T>(args.plan, team, row, live, args.elements, {}, add);
      dot = sums.a / (args.p == INFINITY ? divisor(sums.b) : T(1));
      if (pass == Pass::kSegments) return;
      if (live && team.writes()) dots[row] = dot;
    }
    if (!live || pass == Pass::kJoin) return;
    const T slope = norm_slope(at_row<T>(args.upstream, row), norm, p);
    team.for_batches(args.elements, args.plan.quads, [&](int64_t first, int step) {
      g.read_batch(first, step, args.elements, gs);
      v.read_batch(first, step, args.elements, vs);
      for_norm(args.p, [&](auto norm) {
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          gs[i] = norm_curvature<L, norm()>(gs[i], vs[i], scale, slope, dot, p);
        }
      });
      write_batch(args.curvature, args.grad.dtype, row * args.elements, first, step, args.elements,
                  gs);
    });
  });
}

}  // namespace

void grad_norm_cuda(const GradNormArgs& args, void* stream) {
  dispatch_arithmetic(args.grad.dtype, [&](auto tag) {
    launch_summed_rows(grad_norm_kernel<decltype(tag)>, args.rows, args.elements, stream, args,
                       false);
  });
}

void grad_norm_backward_cuda(const GradNormBackwardArgs& arguments, void* stream) {
  GradNormBackwardArgs args = arguments;
  args.plan.quads = in_quads(args.grad) && in_quads(args.dual, args.elements);
  dispatch_arithmetic(args.grad.dtype, [&](auto tag) {
    const auto kernel = grad_norm_backward_kernel<decltype(tag)>;
    if (args.p == INFINITY) {
      launch_summed_rows(kernel, args.rows, args.elements, stream, args, true);
    } else {
      launch_shared_rows(kernel, args.rows, args.elements, stream, args);
    }
  });
}

void grad_norm_double_backward_cuda(const GradNormDoubleBackwardArgs& arguments, void* stream) {
  GradNormDoubleBackwardArgs args = arguments;
  args.plan.quads =
      in_quads(args.grad) && in_quads(args.v) && in_quads(args.curvature, args.elements);
  dispatch_arithmetic(args.grad.dtype, [&](auto tag) {
    launch_summed_rows(grad_norm_double_backward_kernel<decltype(tag)>, args.rows, args.elements,
                       stream, args, true);
  });
}

}  // namespace robustcore::density
