#include "common/cuda.h"
#include "lipschitz/pairs.h"

namespace robustcore::lipschitz {
namespace {

// One byte's neighbouring pairs, or those that a row still has. Packed, they move 16 bytes at a
// time: rows are whole bytes then, and aligned.
constexpr int kPairs = 8;

template <class E>
__device__ Pack<E, kPairs> load_pairs(const E* from, int count, bool packed) {
  if (packed) return *reinterpret_cast<const Pack<E, kPairs>*>(from);
  Pack<E, kPairs> pairs;
  RC_UNROLL
  for (int j = 0; j < kPairs; ++j) pairs.v[j] = j < count ? from[j] : E{};
  return pairs;
}

template <class E>
__device__ void store_pairs(E* to, const Pack<E, kPairs>& pairs, int count, bool packed) {
  if (packed) {
    *reinterpret_cast<Pack<E, kPairs>*>(to) = pairs;
    return;
  }
  RC_UNROLL
  for (int j = 0; j < kPairs; ++j) {
    if (j < count) to[j] = pairs.v[j];
  }
}

// Exchanges the pairs whose bit keeps(item, a, b, count) leaves clear. A thread owns a byte.
template <class E, class Args, class Keeps>
__device__ void exchange(const Args& args, const Divisor& bytes, bool packed, const Keeps& keeps) {
  const int64_t run = args.shape.run();
  for_items(args.shape.rows * bytes.value(), [&](int64_t item) {
    const int64_t row = bytes.quotient(item), first = (item - row * bytes.value()) * kPairs;
    const int count = static_cast<int>(run - first < kPairs ? run - first : kPairs);
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + first;
    E* out = static_cast<E*>(args.out) + row * 2 * run + first;
    auto a = load_pairs(x, count, packed), b = load_pairs(x + run, count, packed);
    const uint32_t kept = keeps(item, a, b, count);
    RC_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      const bool keep = kept >> j & 1;
      const E larger = keep ? a.v[j] : b.v[j];
      b.v[j] = keep ? b.v[j] : a.v[j], a.v[j] = larger;
    }
    store_pairs(out, a, count, packed);
    store_pairs(out + run, b, count, packed);
  });
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    maxmin_kernel(const __grid_constant__ MaxMinArgs args, const __grid_constant__ Divisor bytes,
                  bool packed) {
  using T = Arithmetic<E>;
  exchange<E>(args, bytes, packed, [&](int64_t item, const auto& a, const auto& b, int count) {
    uint32_t byte = 0;
    RC_UNROLL
    for (int j = 0; j < kPairs; ++j) {
      const bool keep = j < count && !(convert<T>(a.v[j]) < convert<T>(b.v[j]));
      byte |= static_cast<uint32_t>(keep) << j;
    }
    args.bits[item] = static_cast<uint8_t>(byte);
    return byte;
  });
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    swap_kernel(const __grid_constant__ SwapArgs args, const __grid_constant__ Divisor bytes,
                bool packed) {
  exchange<E>(args, bytes, packed, [&](int64_t item, const auto&, const auto&, int) -> uint32_t {
    return args.bits[item];
  });
}

// What divides an item into a row and a pair of it, and that into a channel and a pixel.
struct PairDivisors {
  Divisor run, pixels;
  explicit PairDivisors(const PairShape& shape) : run(shape.run()), pixels(shape.pixels) {}
};

template <class M, class T>
__device__ void load_numbers(const PairShape& shape, const void* table, int64_t c, T* k) {
  RC_UNROLL
  for (int j = 0; j < M::kEntries; ++j) {
    k[j] = static_cast<const T*>(table)[j * shape.channels + c];
  }
}

template <class M, class E>
__global__ void __launch_bounds__(kThreads)
    map_kernel(const __grid_constant__ MapArgs args, const __grid_constant__ PairDivisors by) {
  using T = Arithmetic<E>;
  const int64_t run = args.shape.run();
  for_items(args.shape.rows * run, [&](int64_t item) {
    const int64_t row = by.run.quotient(item), i = item - row * run;
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + i;
    E* out = static_cast<E*>(args.out) + row * M::kOutputs * run + i;
    T k[M::kEntries], v[M::kOutputs];
    load_numbers<M>(args.shape, args.table, by.pixels.quotient(i), k);
    M::forward(k, convert<T>(x[0]), convert<T>(x[run]), v);
    RC_UNROLL
    for (int j = 0; j < M::kOutputs; ++j) out[j * run] = convert<E>(v[j]);
  });
}

template <class M, class E>
__global__ void __launch_bounds__(kThreads)
    map_backward_kernel(const __grid_constant__ MapBackwardArgs args,
                        const __grid_constant__ PairDivisors by) {
  using T = Arithmetic<E>;
  const int64_t run = args.shape.run();
  for_items(args.shape.rows * run, [&](int64_t item) {
    const int64_t row = by.run.quotient(item), i = item - row * run;
    const E* x = static_cast<const E*>(args.x) + row * 2 * run + i;
    const E* grad = static_cast<const E*>(args.grad) + row * M::kOutputs * run + i;
    E* grad_x = static_cast<E*>(args.grad_x) + row * 2 * run + i;
    E* grad_angle = static_cast<E*>(args.grad_angle) + row * M::kAngles * run + i;
    T k[M::kEntries], g[M::kOutputs], v[2], angle[M::kAngles];
    load_numbers<M>(args.shape, args.table, by.pixels.quotient(i), k);
    RC_UNROLL
    for (int j = 0; j < M::kOutputs; ++j) g[j] = convert<T>(grad[j * run]);
    M::backward(k, convert<T>(x[0]), convert<T>(x[run]), g, v, angle);
    grad_x[0] = convert<E>(v[0]);
    grad_x[run] = convert<E>(v[1]);
    RC_UNROLL
    for (int j = 0; j < M::kAngles; ++j) grad_angle[j * run] = convert<E>(angle[j]);
  });
}

template <class Args>
bool is_packed(const Args& args) {
  return args.shape.run() % kPairs == 0 && is_aligned(args.x) && is_aligned(args.out);
}

}  // namespace

void maxmin_cuda(const MaxMinArgs& args, void* stream) {
  dispatch(args.shape.dtype, [&](auto tag) {
    launch_items(maxmin_kernel<decltype(tag)>, args.shape.rows * args.shape.bytes(), stream, args,
                 Divisor(args.shape.bytes()), is_packed(args));
  });
}

void swap_cuda(const SwapArgs& args, void* stream) {
  dispatch(args.shape.dtype, [&](auto tag) {
    launch_items(swap_kernel<decltype(tag)>, args.shape.rows * args.shape.bytes(), stream, args,
                 Divisor(args.shape.bytes()), is_packed(args));
  });
}

void pair_map_cuda(const MapArgs& args, void* stream) {
  dispatch_map(args.map, [&](auto map) {
    dispatch(args.shape.dtype, [&](auto tag) {
      launch_items(map_kernel<decltype(map), decltype(tag)>, args.shape.rows * args.shape.run(),
                   stream, args, PairDivisors(args.shape));
    });
  });
}

void pair_map_backward_cuda(const MapBackwardArgs& args, void* stream) {
  dispatch_map(args.map, [&](auto map) {
    dispatch(args.shape.dtype, [&](auto tag) {
      launch_items(map_backward_kernel<decltype(map), decltype(tag)>,
                   args.shape.rows * args.shape.run(), stream, args, PairDivisors(args.shape));
    });
  });
}

}  // namespace robustcore::lipschitz
