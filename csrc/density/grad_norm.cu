#include "common/rows_cuda.h"
#include "density/grad_norm.h"

namespace robustcore::density {
namespace {

// A row of any dimensions, merged where its strides allow.
template <class In>
struct StridedRow {
  using T = Arithmetic<In>;
  const StridedView& view;
  const In* row;

  __device__ StridedRow(const StridedView& view_, int64_t n)
      : view(view_), row(static_cast<const In*>(view_.data) + n * view_.image_stride) {}
  __device__ T operator()(int64_t e) const {
    return convert<T>(row[element_offset(view, e)]);
  }
};

template <class In, Norm kNorm, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    grad_norm_kernel(const __grid_constant__ GradNormArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows<kWarps>(args.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const StridedRow<In> g(args.grad, row);
    Scaled<T> total{T(0), T(0)};
    over_segments<kWarps, Scaled<T>>(
        team, live, args.elements,
        [&](int64_t first, int count) {
          T m = 0, s = 0;
          for (int k = team.lane; k < count; k += kWarp) m = L::max(m, abs<L>(g(first + k)));
          m = warp_max(m);
          const T scale = scale_of(m);
          for (int k = team.lane; k < count; k += kWarp) {
            s += norm_term<L, kNorm>(abs<L>(g(first + k)) / scale, p);
          }
          return Scaled<T>{m, warp_sum(s)};
        },
        [&](Scaled<T> part) { total = add_power<L, kNorm>(total, part, p); });
    if (live && team.writes()) static_cast<T*>(args.norm)[row] = norm_of<L, kNorm>(total, p);
  });
}

// By how many elements a row's dual is shared: at infinity those that reach the maximum, else 1.
template <Norm kNorm, int kWarps, class In, class T>
__device__ T sharers(const Team<kWarps>& team, bool live, const StridedRow<In>& g, int64_t elements,
                     T scale) {
  using L = OneLane<T>;
  if constexpr (kNorm != Norm::kInf) return 1;
  return sum_over(team, live, elements, T(0),
                  [&](int64_t k, T s) { return s + abs<L>(dual<L, kNorm>(g(k), scale, T(0))); });
}

template <class In, Norm kNorm, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    grad_norm_backward_kernel(const __grid_constant__ GradNormBackwardArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows<kWarps>(args.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const StridedRow<In> g(args.grad, row);
    const T scale = divisor(at_row<T>(args.norm, row));
    const T shared = sharers<kNorm>(team, live, g, args.elements, scale);
    if (!live) return;
    const T upstream = at_row<T>(args.upstream, row) / divisor(shared);
    In* const out = static_cast<In*>(args.dual) + row * args.elements;
    team.for_columns(args.elements, [&](int64_t e) {
      out[e] = convert<In>(upstream * dual<L, kNorm>(g(e), scale, p));
    });
  });
}

template <class In, Norm kNorm, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    grad_norm_double_backward_kernel(const __grid_constant__ GradNormDoubleBackwardArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows<kWarps>(args.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const StridedRow<In> g(args.grad, row), v(args.v, row);
    const T norm = at_row<T>(args.norm, row), scale = divisor(norm);
    const T shared = sharers<kNorm>(team, live, g, args.elements, scale);
    T dot = sum_over(team, live, args.elements, T(0), [&](int64_t k, T s) {
      return L::fma(dual<L, kNorm>(g(k), scale, p), v(k), s);
    });
    if (!live) return;
    dot /= divisor(shared);
    if (team.writes()) static_cast<T*>(args.dot)[row] = dot;
    const T slope = norm_slope(at_row<T>(args.upstream, row), norm, p);
    In* const out = static_cast<In*>(args.curvature) + row * args.elements;
    team.for_columns(args.elements, [&](int64_t e) {
      out[e] = convert<In>(norm_curvature<L, kNorm>(g(e), v(e), scale, slope, dot, p));
    });
  });
}

// Calls body(tag, norm, warps) with the dtype, the kind of norm and how many warps share a row.
template <class Args, class Body>
void for_kind(const Args& args, const Body& body) {
  dispatch(args.grad.dtype, [&](auto tag) {
    for_norm(args.p, [&](auto norm) {
      for_team(args.elements, [&](auto warps) { body(tag, norm, warps); });
    });
  });
}

}  // namespace

void grad_norm_cuda(const GradNormArgs& args, void* stream) {
  for_kind(args, [&](auto tag, auto norm, auto warps) {
    launch_rows<warps()>(grad_norm_kernel<decltype(tag), norm(), warps()>, args.rows, stream, args);
  });
}

void grad_norm_backward_cuda(const GradNormBackwardArgs& args, void* stream) {
  for_kind(args, [&](auto tag, auto norm, auto warps) {
    launch_rows<warps()>(grad_norm_backward_kernel<decltype(tag), norm(), warps()>, args.rows,
                         stream, args);
  });
}

void grad_norm_double_backward_cuda(const GradNormDoubleBackwardArgs& args, void* stream) {
  for_kind(args, [&](auto tag, auto norm, auto warps) {
    launch_rows<warps()>(grad_norm_double_backward_kernel<decltype(tag), norm(), warps()>,
                         args.rows, stream, args);
  });
}

}  // namespace robustcore::density
