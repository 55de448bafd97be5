#include "common/launch.h"
#include "common/strided.h"
#include "lipschitz/launch.h"

namespace robustcore::lipschitz {
namespace {

constexpr int kThreads = 256;

// As many blocks as the work needs, or as keep the device busy: threads stride over the rest.
int64_t blocks_for(int64_t items) {
  const int64_t blocks = ceil_div(items, kThreads), enough = blocks_wanted();
  return blocks < enough ? blocks : enough;
}

__device__ int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ int64_t item_stride() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

// ---- skew ----------------------------------------------------------------------------------------

template <class E>
__global__ void __launch_bounds__(kThreads) skew_kernel(const __grid_constant__ SkewArgs args) {
  using T = Arithmetic<E>;
  const E* weight = static_cast<const E*>(args.weight);
  const int64_t n = args.channels, taps = args.taps;
  for (int64_t e = first_item(); e < n * n * taps; e += item_stride()) {
    const int64_t t = e % taps, i = e / taps % n, o = e / taps / n;
    const E q = weight[(i * n + o) * taps + taps - 1 - t];
    static_cast<E*>(args.out)[e] = convert<E>((convert<T>(weight[e]) - convert<T>(q)) * T(0.5));
  }
}

// ---- maxmin --------------------------------------------------------------------------------------

// A thread owns one byte of bits: eight neighbouring pairs of a row.
template <class E>
__global__ void __launch_bounds__(kThreads) maxmin_kernel(const __grid_constant__ MaxMinArgs args) {
  using T = Arithmetic<E>;
  const int64_t run = args.shape.run(), bytes = args.shape.bytes();
  for (int64_t item = first_item(); item < args.shape.rows * bytes; item += item_stride()) {
    const int64_t row = item / bytes, first = item % bytes * 8;
    const int count = static_cast<int>(run - first < 8 ? run - first : 8);
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + first;
    E* out = static_cast<E*>(args.out) + row * 2 * run + first;
    uint32_t byte = 0;
    for (int j = 0; j < count; ++j) {
      const E a = x[j], b = x[run + j];
      const bool keep = !(convert<T>(a) < convert<T>(b));
      out[j] = keep ? a : b;
      out[run + j] = keep ? b : a;
      byte |= static_cast<uint32_t>(keep) << j;
    }
    args.bits[item] = static_cast<uint8_t>(byte);
  }
}

template <class E>
__global__ void __launch_bounds__(kThreads) swap_kernel(const __grid_constant__ SwapArgs args) {
  const int64_t run = args.shape.run(), bytes = args.shape.bytes();
  for (int64_t item = first_item(); item < args.shape.rows * run; item += item_stride()) {
    const int64_t row = item / run, i = item % run;
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + i;
    E* out = static_cast<E*>(args.out) + row * 2 * run + i;
    const bool keep = args.bits[row * bytes + i / 8] >> (i % 8) & 1;
    const E a = x[0], b = x[run];
    out[0] = keep ? a : b;
    out[run] = keep ? b : a;
  }
}

// ---- maps of pairs -------------------------------------------------------------------------------

template <class M, class T>
__device__ void load_numbers(const PairShape& shape, const void* table, int64_t i, T* k) {
  const int64_t c = i / shape.pixels;
  RC_UNROLL
  for (int j = 0; j < M::kEntries; ++j) {
    k[j] = static_cast<const T*>(table)[j * shape.channels + c];
  }
}

template <class M, class E>
__global__ void __launch_bounds__(kThreads) map_kernel(const __grid_constant__ MapArgs args) {
  using T = Arithmetic<E>;
  const int64_t run = args.shape.run();
  for (int64_t item = first_item(); item < args.shape.rows * run; item += item_stride()) {
    const int64_t row = item / run, i = item % run;
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + i;
    E* out = static_cast<E*>(args.out) + row * M::kOutputs * run + i;
    T k[M::kEntries], v[M::kOutputs];
    load_numbers<M>(args.shape, args.table, i, k);
    M::forward(k, convert<T>(x[0]), convert<T>(x[run]), v);
    RC_UNROLL
    for (int j = 0; j < M::kOutputs; ++j) out[j * run] = convert<E>(v[j]);
  }
}

template <class M, class E>
__global__ void __launch_bounds__(kThreads)
    map_backward_kernel(const __grid_constant__ MapBackwardArgs args) {
  using T = Arithmetic<E>;
  const int64_t run = args.shape.run();
  for (int64_t item = first_item(); item < args.shape.rows * run; item += item_stride()) {
    const int64_t row = item / run, i = item % run;
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + i;
    const E* grad = static_cast<const E*>(args.grad) + row * M::kOutputs * run + i;
    E* grad_x = static_cast<E*>(args.grad_x) + row * 2 * run + i;
    E* grad_angle = static_cast<E*>(args.grad_angle) + row * M::kAngles * run + i;
    T k[M::kEntries], g[M::kOutputs], v[2], angle[M::kAngles];
    load_numbers<M>(args.shape, args.table, i, k);
    RC_UNROLL
    for (int j = 0; j < M::kOutputs; ++j) g[j] = convert<T>(grad[j * run]);
    M::backward(k, convert<T>(x[0]), convert<T>(x[run]), g, v, angle);
    grad_x[0] = convert<E>(v[0]);
    grad_x[run] = convert<E>(v[1]);
    RC_UNROLL
    for (int j = 0; j < M::kAngles; ++j) grad_angle[j * run] = convert<E>(angle[j]);
  }
}

}  // namespace

void skew_cuda(const SkewArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  dispatch(args.dtype, [&](auto tag) {
    const auto kernel = skew_kernel<decltype(tag)>;
    RC_LAUNCH(kernel, blocks_for(args.channels * args.channels * args.taps), kThreads, stream,
              args);
  });
  check_cuda(cudaGetLastError());
}

void maxmin_cuda(const MaxMinArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  dispatch(args.shape.dtype, [&](auto tag) {
    const auto kernel = maxmin_kernel<decltype(tag)>;
    RC_LAUNCH(kernel, blocks_for(args.shape.rows * args.shape.bytes()), kThreads, stream, args);
  });
  check_cuda(cudaGetLastError());
}

void swap_cuda(const SwapArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  dispatch(args.shape.dtype, [&](auto tag) {
    const auto kernel = swap_kernel<decltype(tag)>;
    RC_LAUNCH(kernel, blocks_for(args.shape.rows * args.shape.run()), kThreads, stream, args);
  });
  check_cuda(cudaGetLastError());
}

void map_cuda(Map map, const MapArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  dispatch_map(map, [&](auto m) {
    dispatch(args.shape.dtype, [&](auto tag) {
      const auto kernel = map_kernel<decltype(m), decltype(tag)>;
      RC_LAUNCH(kernel, blocks_for(args.shape.rows * args.shape.run()), kThreads, stream, args);
    });
  });
  check_cuda(cudaGetLastError());
}

void map_backward_cuda(Map map, const MapBackwardArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  dispatch_map(map, [&](auto m) {
    dispatch(args.shape.dtype, [&](auto tag) {
      const auto kernel = map_backward_kernel<decltype(m), decltype(tag)>;
      RC_LAUNCH(kernel, blocks_for(args.shape.rows * args.shape.run()), kThreads, stream, args);
    });
  });
  check_cuda(cudaGetLastError());
}

}  // namespace robustcore::lipschitz
