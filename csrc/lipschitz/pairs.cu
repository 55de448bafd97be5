#include "common/cuda.h"
#include "lipschitz/pairs.h"

namespace robustcore::lipschitz {
namespace {

// A thread owns one byte of bits: eight neighbouring pairs of a row.
template <class E>
__global__ void __launch_bounds__(kThreads) maxmin_kernel(const __grid_constant__ MaxMinArgs args) {
  using T = Arithmetic<E>;
  const int64_t run = args.shape.run(), bytes = args.shape.bytes();
  for_items(args.shape.rows * bytes, [&](int64_t item) {
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
  });
}

template <class E>
__global__ void __launch_bounds__(kThreads) swap_kernel(const __grid_constant__ SwapArgs args) {
  const int64_t run = args.shape.run(), bytes = args.shape.bytes();
  for_items(args.shape.rows * run, [&](int64_t item) {
    const int64_t row = item / run, i = item % run;
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + i;
    E* out = static_cast<E*>(args.out) + row * 2 * run + i;
    const bool keep = args.bits[row * bytes + i / 8] >> (i % 8) & 1;
    const E a = x[0], b = x[run];
    out[0] = keep ? a : b;
    out[run] = keep ? b : a;
  });
}

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
  for_items(args.shape.rows * run, [&](int64_t item) {
    const int64_t row = item / run, i = item % run;
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + i;
    E* out = static_cast<E*>(args.out) + row * M::kOutputs * run + i;
    T k[M::kEntries], v[M::kOutputs];
    load_numbers<M>(args.shape, args.table, i, k);
    M::forward(k, convert<T>(x[0]), convert<T>(x[run]), v);
    RC_UNROLL
    for (int j = 0; j < M::kOutputs; ++j) out[j * run] = convert<E>(v[j]);
  });
}

template <class M, class E>
__global__ void __launch_bounds__(kThreads)
    map_backward_kernel(const __grid_constant__ MapBackwardArgs args) {
  using T = Arithmetic<E>;
  const int64_t run = args.shape.run();
  for_items(args.shape.rows * run, [&](int64_t item) {
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
  });
}

}  // namespace

void maxmin_cuda(const MaxMinArgs& args, void* stream) {
  dispatch(args.shape.dtype, [&](auto tag) {
    launch_items(maxmin_kernel<decltype(tag)>, args.shape.rows * args.shape.bytes(), stream, args);
  });
}

void swap_cuda(const SwapArgs& args, void* stream) {
  dispatch(args.shape.dtype, [&](auto tag) {
    launch_items(swap_kernel<decltype(tag)>, args.shape.rows * args.shape.run(), stream, args);
  });
}

void pair_map_cuda(const MapArgs& args, void* stream) {
  dispatch_map(args.map, [&](auto map) {
    dispatch(args.shape.dtype, [&](auto tag) {
      launch_items(map_kernel<decltype(map), decltype(tag)>, args.shape.rows * args.shape.run(),
                   stream, args);
    });
  });
}

void pair_map_backward_cuda(const MapBackwardArgs& args, void* stream) {
  dispatch_map(args.map, [&](auto map) {
    dispatch(args.shape.dtype, [&](auto tag) {
      launch_items(map_backward_kernel<decltype(map), decltype(tag)>,
                   args.shape.rows * args.shape.run(), stream, args);
    });
  });
}

}  // namespace robustcore::lipschitz
