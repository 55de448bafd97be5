#include "common/rows_cuda.h"
#include "density/grad_norm.h"

namespace robustcore::density {
namespace {

// The kind of norm and the dtype are known when a kernel runs: one branch on each for a batch of
// elements costs less than a kernel for each.

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    grad_norm_kernel(const __grid_constant__ GradNormArgs args) {
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows(team_size(args.elements), args.rows, [&](const Team& team, int64_t row, bool live) {
    const LaneRow<T> g(args.grad, row);
    Scaled<T> total{T(0), T(0)};
    over_segments<Scaled<T>>(
        team, live, args.elements,
        [&](int64_t first, int count) {
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
              for (int i = 0; i < kAhead; ++i) {
                s += norm_term<L, norm()>(abs<L>(values[i]) / scale, p);
              }
            });
          }
          return Scaled<T>{m, warp_sum(s)};
        },
        [&](Scaled<T> part) {
          for_norm(args.p, [&](auto norm) { total = add_power<L, norm()>(total, part, p); });
        });
    if (!live || !team.writes()) return;
    for_norm(args.p,
             [&](auto norm) { static_cast<T*>(args.norm)[row] = norm_of<L, norm()>(total, p); });
  });
}

// By how many elements a row's dual is shared: at infinity those that reach the maximum, else 1.
template <class T>
__device__ T sharers(const Team& team, bool live, const LaneRow<T>& g, int64_t elements, T scale,
                     double p) {
  using L = OneLane<T>;
  if (p != INFINITY) return 1;
  return sum_over(team, live, elements, T(0), [&](int64_t first, int64_t end, T s) {
    T values[kAhead];
    g.read(first, end, values);
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kWarp < end) s += abs<L>(dual<L, Norm::kInf>(values[i], scale, T(0)));
    }
    return s;
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    grad_norm_backward_kernel(const __grid_constant__ GradNormBackwardArgs args) {
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_shared_rows(args.rows, args.elements, [&](const Team& team, int64_t row, bool live) {
    const LaneRow<T> g(args.grad, row);
    const T scale = divisor(at_row<T>(args.norm, row));
    const T shared = sharers(team, live, g, args.elements, scale, args.p);
    if (!live) return;
    const T upstream = at_row<T>(args.upstream, row) / divisor(shared);
    team.for_batches(args.elements, [&](int64_t first) {
      T values[kAhead];
      g.read(first, args.elements, values);
      for_norm(args.p, [&](auto norm) {
        RC_UNROLL
        for (T& v : values) v = upstream * dual<L, norm()>(v, scale, p);
      });
      write_batch(args.dual, args.grad.dtype, row * args.elements, first, args.elements, values);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    grad_norm_double_backward_kernel(const __grid_constant__ GradNormDoubleBackwardArgs args) {
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows(team_size(args.elements), args.rows, [&](const Team& team, int64_t row, bool live) {
    const LaneRow<T> g(args.grad, row), v(args.v, row);
    const T norm = at_row<T>(args.norm, row), scale = divisor(norm);
    const T shared = sharers(team, live, g, args.elements, scale, args.p);
    T gs[kAhead], vs[kAhead];
    T dot = sum_over(team, live, args.elements, T(0), [&](int64_t first, int64_t end, T s) {
      g.read(first, end, gs);
      v.read(first, end, vs);
      for_norm(args.p, [&](auto norm) {
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          if (first + i * kWarp < end) s = L::fma(dual<L, norm()>(gs[i], scale, p), vs[i], s);
        }
      });
      return s;
    });
    if (!live) return;
    dot /= divisor(shared);
    if (team.writes()) static_cast<T*>(args.dot)[row] = dot;
    const T slope = norm_slope(at_row<T>(args.upstream, row), norm, p);
    team.for_batches(args.elements, [&](int64_t first) {
      g.read(first, args.elements, gs);
      v.read(first, args.elements, vs);
      for_norm(args.p, [&](auto norm) {
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          gs[i] = norm_curvature<L, norm()>(gs[i], vs[i], scale, slope, dot, p);
        }
      });
      write_batch(args.curvature, args.grad.dtype, row * args.elements, first, args.elements, gs);
    });
  });
}

}  // namespace

void grad_norm_cuda(const GradNormArgs& args, void* stream) {
  dispatch_arithmetic(args.grad.dtype, [&](auto tag) {
    launch_rows(grad_norm_kernel<decltype(tag)>, team_size(args.elements), args.rows, stream, args);
  });
}

void grad_norm_backward_cuda(const GradNormBackwardArgs& args, void* stream) {
  dispatch_arithmetic(args.grad.dtype, [&](auto tag) {
    const auto kernel = grad_norm_backward_kernel<decltype(tag)>;
    if (args.p == INFINITY) {  // sharers are added up
      return launch_rows(kernel, team_size(args.elements), args.rows, stream, args);
    }
    launch_shared_rows(kernel, args.rows, args.elements, stream, args);
  });
}

void grad_norm_double_backward_cuda(const GradNormDoubleBackwardArgs& args, void* stream) {
  dispatch_arithmetic(args.grad.dtype, [&](auto tag) {
    launch_rows(grad_norm_double_backward_kernel<decltype(tag)>, team_size(args.elements),
                args.rows, stream, args);
  });
}

}  // namespace robustcore::density
