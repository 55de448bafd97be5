// Launching CUDA kernels, torch-free. Every kernel starts through `launch` and every shuffle goes
// through the wrappers that the tests stand in for (RC_CUDA_SHIM), so that the same kernels run on
// CPU threads where there is no device.
#pragma once

#if defined(RC_CUDA_SHIM)
#include "cuda_shim.h"
#else
#include <cuda_runtime.h>
#define RC_LAUNCH(kernel, grid, block, stream, ...) \
  (kernel)<<<static_cast<unsigned>(grid), static_cast<unsigned>(block), 0, (stream)>>>(__VA_ARGS__)
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/strided.h"

namespace robustcore {

// A block of every kernel that has no reason for another size.
constexpr int kThreads = 256;

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string message = std::string("robustcore: CUDA: ") + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    message +=
        "; no kernel of this build fits the GPU (see robustcore.build_info()['cuda_archs']); "
        "reinstall with ROBUSTCORE_CUDA_ARCHS set to its compute capability";
  } else if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    message +=
        "; the driver is older than the CUDA toolkit of this build; update the driver (580 or "
        "newer for CUDA 13) or reinstall with an older toolkit's nvcc in PATH";
  }
  throw std::runtime_error(message);
}

// How many blocks keep the current device busy with some to spare.
inline int64_t blocks_wanted() {
  int device = 0, processors = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  return static_cast<int64_t>(processors) * 16;
}

// One block a unit of work, where units do not exceed what a grid takes; kernels loop over units.
template <class... Parameters, class... Args>
void launch(void (*kernel)(Parameters...), int64_t units, int threads, void* stream,
            const Args&... args) {
  constexpr int64_t kMaxGrid = (int64_t{1} << 31) - 1;
  RC_LAUNCH(kernel, units < kMaxGrid ? units : kMaxGrid, threads, static_cast<cudaStream_t>(stream),
            args...);
  check_cuda(cudaGetLastError());
}

// As many blocks as the items need, or as keep the device busy; kernels loop over items.
template <class... Parameters, class... Args>
void launch_items(void (*kernel)(Parameters...), int64_t items, void* stream, const Args&... args) {
  const int64_t blocks = ceil_div(items, kThreads), enough = blocks_wanted();
  launch(kernel, blocks < enough ? blocks : enough, kThreads, stream, args...);
}

// Calls body(unit) for the units of this block. 64 bits throughout: a batch may have more than
// 2^31 elements.
template <class Body>
__device__ __forceinline__ void for_units(int64_t units, const Body& body) {
  // Rolled: for 10.0 and 12.0 nvcc unrolls even this, which mostly turns once.
  RC_ROLL
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) body(unit);
}

// Calls body(item) for the items of this thread; neighbouring threads have neighbouring items.
template <class Body>
__device__ __forceinline__ void for_items(int64_t items, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items;
       item += step) {
    body(item);
  }
}

// A divisor known at launch: below 2^31 a quotient is a product and a shift, a fifth of what a GPU
// needs to divide.
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t value) : value_(value) {
    if (value >= kSmall) return;  // what is below 2^31 has quotient 0
    int bits = 0;
    while (int64_t{1} << bits < value) ++bits;
    shift_ = 31 + bits;
    factor_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + value - 1) / value);
  }
  RC_HOST_DEVICE int64_t value() const {
    return value_;
  }
  RC_HOST_DEVICE int64_t quotient(int64_t n) const {
    if (n >= kSmall) return n / value_;
    return static_cast<int64_t>(uint64_t{static_cast<uint32_t>(n)} * factor_ >> shift_);
  }

 private:
  static constexpr int64_t kSmall = int64_t{1} << 31;
  int64_t value_ = 1;
  uint32_t factor_ = 0;
  int32_t shift_ = 31;
};

// Consecutive values, read or written with as few instructions as their size allows.
template <class T, int kWide>
struct alignas(sizeof(T) * kWide > 16 ? 16 : sizeof(T) * kWide) Pack {
  T v[kWide];
};
template <class T>
using Quad = Pack<T, 4>;

// Values of type T that 16 bytes hold.
template <class T>
constexpr int kPack = 16 / sizeof(T);

// Images of `elements` each, kWide elements a thread. Inside an image 32 bits index: a GPU divides
// and multiplies in a fifth of the instructions that 64 take. Larger images get kWide = 1 and 64.
template <class Index, int kWide, class Body>
__device__ __forceinline__ void for_image_packs(int64_t images, int64_t elements,
                                                const Body& body) {
  constexpr int64_t kTile = kThreads * kWide;
  const int64_t tiles = ceil_div(elements, kTile);
  for_units(images * tiles, [&](int64_t unit) {
    const int64_t image = unit / tiles;
    const Index e = static_cast<Index>((unit - image * tiles) * kTile + threadIdx.x * kWide);
    if (e < static_cast<Index>(elements)) body(image, e);
  });
}

// Calls body(Index{}, wide) for such a kernel, and says how many blocks it wants.
template <class E, class Body>
void for_pack_width(int64_t images, int64_t elements, bool whole_packs, const Body& body) {
  const auto units = [&](int wide) { return images * ceil_div(elements, kThreads * wide); };
  if (elements >= int64_t{1} << 31) {
    body(int64_t{}, std::integral_constant<int, 1>{}, units(1));
  } else if (whole_packs) {
    body(uint32_t{}, std::integral_constant<int, kPack<E>>{}, units(kPack<E>));
  } else {
    body(uint32_t{}, std::integral_constant<int, 1>{}, units(1));
  }
}

inline bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

}  // namespace robustcore
