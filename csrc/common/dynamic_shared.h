// Shared memory whose size the launch decides, beyond the 48 KiB that a kernel has unasked.
#pragma once

#include "common/cuda.h"

#if defined(RC_CUDA_SHIM)
#define RC_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...) \
  ((void)(stream), cuda_shim::launch((grid), (block), [&] { (kernel)(__VA_ARGS__); }, (bytes)))
#else
#define RC_LAUNCH_SHARED(kernel, grid, block, bytes, stream, ...)       \
  (kernel)<<<static_cast<unsigned>(grid), static_cast<unsigned>(block), \
             static_cast<unsigned>(bytes), (stream)>>>(__VA_ARGS__)
#endif

namespace robustcore {

// 16-aligned, of the launch's size.
__device__ __forceinline__ char* dynamic_shared() {
#if defined(RC_CUDA_SHIM)
  return cuda_shim::dynamic_shared();
#else
  extern __shared__ uint4 memory[];
  return reinterpret_cast<char*>(memory);
#endif
}

// What a block of a device may ask for.
inline int64_t shared_limit(int device) {
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// As `launch`, with `bytes` of dynamic shared memory, at most shared_limit(device).
template <class... Parameters, class... Args>
void launch_shared(void (*kernel)(Parameters...), int64_t units, int threads, int64_t bytes,
                   void* stream, const Args&... args) {
  constexpr int64_t kMaxGrid = (int64_t{1} << 31) - 1;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)));
  RC_LAUNCH_SHARED(kernel, units < kMaxGrid ? units : kMaxGrid, threads, bytes,
                   static_cast<cudaStream_t>(stream), args...);
  check_cuda(cudaGetLastError());
}

}  // namespace robustcore
