// Runs CUDA kernels on CPU threads, so that a build without a GPU still executes every kernel: a
// block's threads are real threads, __syncthreads is a std::barrier, shared memory is static
// storage (blocks run one after another). Under ThreadSanitizer a missing barrier is a reported
// race, under AddressSanitizer a wrong index is a reported access.
#pragma once

#include <barrier>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidDeviceFunction,
  cudaErrorInsufficientDriver,
  cudaErrorUnsupportedPtxVersion,
};
enum { cudaDevAttrMultiProcessorCount };

inline const char* cudaGetErrorString(cudaError_t) {
  return "shim";
}
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
// One processor: small grids, so that blocks have to loop over several units.
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 1;
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

namespace cuda_shim {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
constexpr int kWarp = 32;

struct Block {
  explicit Block(unsigned threads) : all(threads), slots(threads) {
    for (unsigned w = 0; w < threads; w += kWarp) {
      const unsigned size = threads - w < kWarp ? threads - w : kWarp;
      warps.push_back(std::make_unique<std::barrier<>>(size));
    }
  }
  std::barrier<> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  std::vector<uint64_t> slots;  // of shuffles, one a thread
};

inline thread_local Block* block = nullptr;

}  // namespace cuda_shim

inline thread_local cuda_shim::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() {
  cuda_shim::block->all.arrive_and_wait();
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int step) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  auto& warp = *cuda_shim::block->warps[threadIdx.x / cuda_shim::kWarp];
  std::memcpy(&cuda_shim::block->slots[threadIdx.x], &value, sizeof(T));
  warp.arrive_and_wait();
  T other;
  std::memcpy(&other, &cuda_shim::block->slots[threadIdx.x ^ static_cast<unsigned>(step)],
              sizeof(T));
  warp.arrive_and_wait();
  return other;
}

template <class T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

namespace cuda_shim {

template <class Body>
void launch(int64_t grid, int64_t threads, const Body& body) {
  Block shared(static_cast<unsigned>(threads));
  std::vector<std::thread> team;
  for (int64_t t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      block = &shared;
      threadIdx.x = static_cast<unsigned>(t);
      blockDim.x = static_cast<unsigned>(threads);
      gridDim.x = static_cast<unsigned>(grid);
      for (int64_t b = 0; b < grid; ++b) {
        blockIdx.x = static_cast<unsigned>(b);
        body();
        shared.all.arrive_and_wait();
      }
    });
  }
  for (auto& thread : team) thread.join();
}

}  // namespace cuda_shim

#define RC_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), cuda_shim::launch((grid), (block), [&] { (kernel)(__VA_ARGS__); }))
