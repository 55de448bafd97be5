#include "common/launch.h"
#include "density/density.h"
#include "density/launch.h"

namespace robustcore::density {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarpsPerBlock = kThreads / kWarp;
constexpr int kSteps = kSegment / kWarp;  // elements of a segment in each lane
static_assert(kWarp == kSums, "a lane is an accumulator");
// Blocks a processor holds at least: what leaves each thread enough registers.
template <class In>
constexpr int kBlocks = sizeof(In) == sizeof(double) ? 2 : 4;

template <class T>
using OneLane = std::conditional_t<sizeof(T) == sizeof(double), ScalarDouble, Scalar>;

// kWarps neighbouring warps of a block share a row: one where a row is short, all where it is long.
// All threads of a block make the same turns, because shuffles and barriers need them.
template <int kWarps>
struct Team {
  static constexpr int kRows = kWarpsPerBlock / kWarps;  // of a block at a time
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int row = warp / kWarps, member = warp % kWarps;

  __device__ bool writes() const {
    return lane == 0 && member == 0;
  }
  // Calls body(k) with this thread's columns.
  template <class Body>
  __device__ void for_columns(int64_t columns, const Body& body) const {
    for (int64_t k = member * kWarp + lane; k < columns; k += kWarps * kWarp) body(k);
  }
};

// Calls body(team, row, live) for the block's rows. A team whose row is past the end comes along,
// on row 0 and not live.
template <int kWarps, class Body>
__device__ void for_rows(int64_t rows, const Body& body) {
  const Team<kWarps> team;
  constexpr int64_t at_once = Team<kWarps>::kRows;
  for (int64_t first = blockIdx.x * at_once; first < rows; first += gridDim.x * at_once) {
    const int64_t row = first + team.row;
    body(team, row < rows ? row : 0, row < rows);
  }
}

template <class T>
__device__ T warp_max(T v) {
  RC_UNROLL
  for (int step = kWarp / 2; step > 0; step /= 2) {
    v = OneLane<T>::max(v, __shfl_xor_sync(0xFFFFFFFFu, v, step));
  }
  return v;
}

// The binary tree over accumulators: the order of addends does not matter, the pairing does.
template <class T>
__device__ T warp_sum(T v) {
  RC_UNROLL
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, step);
  return v;
}

// Calls add(part) with the part of every segment of a row, in order. compute(first, count) gives
// the warp's segment, all lanes of it; count is 0 past the end, and where the row is not live.
template <int kWarps, class Part, class Compute, class Add>
__device__ void over_segments(const Team<kWarps>& team, bool live, int64_t elements,
                              const Compute& compute, const Add& add) {
  __shared__ Part parts[kWarpsPerBlock];
  const int64_t segments = ceil_div(elements, kSegment), columns = live ? elements : 0;
  RC_ROLL
  for (int64_t wave = 0; wave < segments; wave += kWarps) {
    const int64_t first = (wave + team.member) * kSegment;
    const int64_t left = columns - first;
    const int count = static_cast<int>(left < 0 ? 0 : left < kSegment ? left : kSegment);
    const Part part = compute(first, count);
    if constexpr (kWarps == 1) {
      if (count > 0) add(part);
    } else {
      if (team.lane == 0) parts[team.warp] = part;
      __syncthreads();
      for (int i = 0; i < kWarps && (wave + i) * kSegment < columns; ++i) {
        add(parts[team.row * kWarps + i]);
      }
      __syncthreads();
    }
  }
}

// total plus the sum over a row: step(k, s) is s plus the term of element k.
template <int kWarps, class T, class Step>
__device__ T sum_over(const Team<kWarps>& team, bool live, int64_t elements, T total,
                      const Step& step) {
  over_segments<kWarps, T>(
      team, live, elements,
      [&](int64_t first, int count) {
        T s = 0;
        for (int k = team.lane; k < count; k += kWarp) s = step(first + k, s);
        return warp_sum(s);
      },
      [&](T part) { total += part; });
  return total;
}

// Reads element (row, k) of a matrix of In, plus its bias.
template <class In>
struct Matrix {
  using T = Arithmetic<In>;
  const In* row;
  int64_t stride;
  const T* bias;

  __device__ Matrix(const StridedView& view, const void* bias_, int64_t index)
      : row(static_cast<const In*>(view.data) + index * view.image_stride),
        stride(view.strides[0]),
        bias(static_cast<const T*>(bias_)) {}
  __device__ T operator()(int64_t k) const {
    const T v = convert<T>(row[k * stride]);
    return bias ? v + bias[k] : v;
  }
};

__device__ int64_t target_column(const Logits& logits, int64_t row) {
  return logits.targets ? logits.targets[row] - logits.first_class : -1;
}

// ---- log-sum-exp ---------------------------------------------------------------------------------

template <class In, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    lse_kernel(const __grid_constant__ LseArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const Logits& logits = args.logits;
  T* const max = static_cast<T*>(args.max);
  T* const sum = static_cast<T*>(args.sum);
  for_rows<kWarps>(logits.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const Matrix<In> z(logits.z, logits.bias, row);
    Scaled<T> total{T(-INFINITY), T(0)};
    if (live && max && !args.first) total = {max[row], sum[row]};
    over_segments<kWarps, Scaled<T>>(
        team, live, logits.classes,
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
    const int64_t target = target_column(logits, row);
    if (target >= 0 && target < logits.classes) {
      static_cast<T*>(args.target_logits)[row] = z(target);
    }
  });
}

template <class In, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    lse_grad_kernel(const __grid_constant__ LseGradArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const Logits& logits = args.logits;
  for_rows<kWarps>(logits.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    if (!live) return;
    const Matrix<In> z(logits.z, logits.bias, row);
    const T grad = at_row<T>(args.grad, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    const int64_t target = target_column(logits, row);
    In* const out = static_cast<In*>(args.weights) + row * logits.classes;
    team.for_columns(logits.classes, [&](int64_t k) {
      T weight = grad * exp<L>(z(k) - shift);
      if (k == target) weight += at_row<T>(args.grad_target, row);
      out[k] = convert<In>(weight);
    });
  });
}

template <class In, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    lse_hess_kernel(const __grid_constant__ LseHessArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const Logits& logits = args.logits;
  for_rows<kWarps>(logits.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const Matrix<In> z(logits.z, logits.bias, row);
    const Matrix<In> v(args.v, args.v_bias, row);
    const T shift = probability_shift(at_row<T>(args.lse, row));
    T dot = live ? static_cast<T*>(args.dot)[row] : T(0);
    if (args.reduce) {
      dot = sum_over(team, live, logits.classes, dot,
                     [&](int64_t k, T s) { return L::fma(exp<L>(z(k) - shift), v(k), s); });
      if (live && team.writes()) static_cast<T*>(args.dot)[row] = dot;
    }
    if (!live || !args.curvature) return;
    const T grad = at_row<T>(args.grad, row);
    const int64_t target = target_column(logits, row);
    In* const curvature = static_cast<In*>(args.curvature) + row * logits.classes;
    In* const weights = static_cast<In*>(args.weights) + row * logits.classes;
    team.for_columns(logits.classes, [&](int64_t k) {
      T weight = grad * exp<L>(z(k) - shift);
      curvature[k] = convert<In>(weight * (v(k) - dot));
      if (!args.weights) return;
      if (k == target) weight += at_row<T>(args.grad_target, row);
      weights[k] = convert<In>(weight);
    });
  });
}

// ---- norms ---------------------------------------------------------------------------------------

// A row of any dimensions, merged where its strides allow.
template <class In>
struct Elements {
  using T = Arithmetic<In>;
  const StridedView& view;
  const In* row;

  __device__ Elements(const StridedView& view_, int64_t index)
      : view(view_), row(static_cast<const In*>(view_.data) + index * view_.image_stride) {}
  __device__ T operator()(int64_t e) const {
    return convert<T>(row[element_offset(view, e)]);
  }
};

template <class In, Norm kNorm, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    norm_kernel(const __grid_constant__ NormArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows<kWarps>(args.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const Elements<In> g(args.g, row);
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
__device__ T sharers(const Team<kWarps>& team, bool live, const Elements<In>& g, int64_t elements,
                     T scale) {
  using L = OneLane<T>;
  if constexpr (kNorm != Norm::kInf) return 1;
  return sum_over(team, live, elements, T(0),
                  [&](int64_t k, T s) { return s + abs<L>(dual<L, kNorm>(g(k), scale, T(0))); });
}

template <class In, Norm kNorm, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    norm_grad_kernel(const __grid_constant__ NormGradArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows<kWarps>(args.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const Elements<In> g(args.g, row);
    const T scale = divisor(at_row<T>(args.norm, row));
    const T shared = sharers<kNorm>(team, live, g, args.elements, scale);
    if (!live) return;
    const T grad = at_row<T>(args.grad, row) / divisor(shared);
    In* const out = static_cast<In*>(args.dual) + row * args.elements;
    team.for_columns(args.elements, [&](int64_t e) {
      out[e] = convert<In>(grad * dual<L, kNorm>(g(e), scale, p));
    });
  });
}

template <class In, Norm kNorm, int kWarps>
__global__ void __launch_bounds__(kThreads, kBlocks<In>)
    norm_hess_kernel(const __grid_constant__ NormHessArgs args) {
  using T = Arithmetic<In>;
  using L = OneLane<T>;
  const T p = static_cast<T>(args.p);
  for_rows<kWarps>(args.rows, [&](const Team<kWarps>& team, int64_t row, bool live) {
    const Elements<In> g(args.g, row), v(args.v, row);
    const T norm = at_row<T>(args.norm, row), scale = divisor(norm);
    const T shared = sharers<kNorm>(team, live, g, args.elements, scale);
    T dot = sum_over(team, live, args.elements, T(0), [&](int64_t k, T s) {
      return L::fma(dual<L, kNorm>(g(k), scale, p), v(k), s);
    });
    if (!live) return;
    dot /= divisor(shared);
    if (team.writes()) static_cast<T*>(args.dot)[row] = dot;
    const T slope = norm_slope(at_row<T>(args.grad, row), norm, p);
    In* const out = static_cast<In*>(args.curvature) + row * args.elements;
    team.for_columns(args.elements, [&](int64_t e) {
      out[e] = convert<In>(norm_curvature<L, kNorm>(g(e), v(e), scale, slope, dot, p));
    });
  });
}

// ---- launching -----------------------------------------------------------------------------------

// Calls body with an integral constant: how many warps share a row of so many elements.
template <class Body>
void with_warps(int64_t columns, const Body& body) {
  if (columns <= 2 * kSegment) {
    body(std::integral_constant<int, 1>{});
  } else {
    body(std::integral_constant<int, kWarpsPerBlock>{});
  }
}

template <class Args>
void launch(void (*kernel)(Args), const Args& args, int64_t rows, int warps, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  RC_LAUNCH(kernel, grid_for(ceil_div(rows, kWarpsPerBlock / warps)), kThreads, stream, args);
  check_cuda(cudaGetLastError());
}

// kernel_of(tag, warps) or kernel_of(tag, norm, warps) is the kernel for a dtype, a kind of norm
// and a length of rows.
template <class Args, class KernelOf>
void launch_lse(const Args& args, void* stream, const KernelOf& kernel_of) {
  dispatch(args.logits.z.dtype, [&](auto tag) {
    with_warps(args.logits.classes, [&](auto warps) {
      launch(kernel_of(tag, warps), args, args.logits.rows, warps, stream);
    });
  });
}

template <class Args, class KernelOf>
void launch_norm(const Args& args, void* stream, const KernelOf& kernel_of) {
  dispatch(args.g.dtype, [&](auto tag) {
    with_norm(args.p, [&](auto norm) {
      with_warps(args.elements, [&](auto warps) {
        launch(kernel_of(tag, norm, warps), args, args.rows, warps, stream);
      });
    });
  });
}

#define RC_LSE_KERNEL(kernel) \
  [](auto tag, auto warps) { return kernel<decltype(tag), decltype(warps)::value>; }
#define RC_NORM_KERNEL(kernel)                                                   \
  [](auto tag, auto norm, auto warps) {                                          \
    return kernel<decltype(tag), decltype(norm)::value, decltype(warps)::value>; \
  }

}  // namespace

void lse_cuda(const LseArgs& args, void* stream) {
  launch_lse(args, stream, RC_LSE_KERNEL(lse_kernel));
}

void lse_grad_cuda(const LseGradArgs& args, void* stream) {
  launch_lse(args, stream, RC_LSE_KERNEL(lse_grad_kernel));
}

void lse_hess_cuda(const LseHessArgs& args, void* stream) {
  launch_lse(args, stream, RC_LSE_KERNEL(lse_hess_kernel));
}

void norm_cuda(const NormArgs& args, void* stream) {
  launch_norm(args, stream, RC_NORM_KERNEL(norm_kernel));
}

void norm_grad_cuda(const NormGradArgs& args, void* stream) {
  launch_norm(args, stream, RC_NORM_KERNEL(norm_grad_kernel));
}

void norm_hess_cuda(const NormHessArgs& args, void* stream) {
  launch_norm(args, stream, RC_NORM_KERNEL(norm_hess_kernel));
}

}  // namespace robustcore::density
