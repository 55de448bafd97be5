// Runs CUDA kernels on CPU threads, so that a build without a GPU still executes every kernel: a
// block's threads are real threads, __syncthreads is a barrier of them, shared memory is static
// storage (blocks run one after another). Under ThreadSanitizer a missing barrier is a reported
// race, under AddressSanitizer a wrong index is a reported access.
#pragma once

#include <pthread.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
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
enum { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };

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
// One processor: small grids, so that blocks have to loop over several units. Shared memory as an
// H100 has it.
inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 1 : 227 << 10;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
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

// Of POSIX: std::barrier spins before it sleeps, in vain with hundreds of threads on a few cores.
class Barrier {
 public:
  explicit Barrier(unsigned threads) {
    pthread_barrier_init(&barrier_, nullptr, threads);
  }
  ~Barrier() {
    pthread_barrier_destroy(&barrier_);
  }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  void wait() {
    pthread_barrier_wait(&barrier_);
  }

 private:
  pthread_barrier_t barrier_;
};

// What the lanes of a warp hand one another: two of them in turn, so that one barrier a hand-over
// suffices.
struct Exchange {
  alignas(16) unsigned char bytes[2][kWarp * 512];
};

struct alignas(16) SharedUnit {
  unsigned char bytes[16];
};

struct Block {
  explicit Block(unsigned threads)
      : all(threads), slots(threads), exchanges((threads + kWarp - 1) / kWarp) {
    for (unsigned w = 0; w < threads; w += kWarp) {
      const unsigned size = threads - w < kWarp ? threads - w : kWarp;
      warps.push_back(std::make_unique<Barrier>(size));
    }
  }
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> warps;
  std::vector<uint64_t> slots;  // of shuffles, one a thread
  std::vector<Exchange> exchanges;
  std::vector<SharedUnit> dynamic_shared;  // of this launch and no larger
};

inline thread_local Block* block = nullptr;

inline char* dynamic_shared() {
  return reinterpret_cast<char*>(block->dynamic_shared.data());
}

}  // namespace cuda_shim

inline thread_local cuda_shim::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() {
  cuda_shim::block->all.wait();
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const unsigned warp = threadIdx.x / cuda_shim::kWarp;
  const unsigned from = static_cast<unsigned>(lane) % cuda_shim::kWarp;
  std::memcpy(&cuda_shim::block->slots[threadIdx.x], &value, sizeof(T));
  cuda_shim::block->warps[warp]->wait();
  T other;
  std::memcpy(&other, &cuda_shim::block->slots[warp * cuda_shim::kWarp + from], sizeof(T));
  cuda_shim::block->warps[warp]->wait();
  return other;
}
template <class T>
T __shfl_xor_sync(unsigned all, T value, int step) {
  return __shfl_sync(all, value, static_cast<int>(threadIdx.x) ^ step);
}

namespace cuda_shim {

inline thread_local unsigned exchange_turn = 0;

// A whole warp's instruction: each lane hands in a value and gets those of all 32, of which it
// computes what the instruction leaves in its own registers. They stay until the next exchange but
// one.
template <class T>
const T* exchange(const T& mine) {
  static_assert(sizeof(T) <= 512 && std::is_trivially_copyable_v<T>);
  T* all = reinterpret_cast<T*>(block->exchanges[threadIdx.x / kWarp].bytes[exchange_turn++ % 2]);
  std::memcpy(&all[threadIdx.x % kWarp], &mine, sizeof(T));
  block->warps[threadIdx.x / kWarp]->wait();
  return all;
}

// Asynchronous copies happen as late as they may, when they are waited for: who reads too early
// reads what was there before.
struct Copy {
  void* to;
  const void* from;
  bool there;
};
inline thread_local std::vector<Copy> open_copies;
inline thread_local std::deque<std::vector<Copy>> copy_groups;

inline void copy_async(void* to, const void* from, bool there) {
  open_copies.push_back({to, from, there});
}
inline void commit_copies() {
  copy_groups.push_back(std::move(open_copies));
  open_copies.clear();
}
inline void wait_copies(size_t groups) {
  for (; copy_groups.size() > groups; copy_groups.pop_front()) {
    for (const Copy& c : copy_groups.front()) {
      c.there ? std::memcpy(c.to, c.from, 16) : std::memset(c.to, 0, 16);
    }
  }
}

}  // namespace cuda_shim

template <class T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

namespace cuda_shim {

// The threads of a block, kept for all launches of its size: under a sanitizer they take longer to
// start than most of these kernels to run.
class Team {
 public:
  explicit Team(unsigned threads) : shared_(threads), turn_(threads + 1) {
    for (unsigned t = 0; t < threads; ++t) threads_.emplace_back([=, this] { work(t, threads); });
  }
  ~Team() {
    body_ = nullptr;
    turn_.wait();
    for (auto& thread : threads_) thread.join();
  }
  void run(int64_t grid, const std::function<void()>& body, size_t shared) {
    grid_ = grid, body_ = &body;
    // Anew for each launch: an address sanitizer sees where it ends.
    SharedUnit unwritten;
    std::memset(&unwritten, 0xFF, sizeof unwritten);  // NaN
    shared_.dynamic_shared = std::vector<SharedUnit>((shared + 15) / 16, unwritten);
    turn_.wait();  // starts it
    turn_.wait();  // all are through
  }

 private:
  void work(unsigned t, unsigned threads) {
    block = &shared_;
    threadIdx.x = t, blockDim.x = threads;
    for (turn_.wait(); body_ != nullptr; turn_.wait()) {
      gridDim.x = static_cast<unsigned>(grid_);
      for (int64_t b = 0; b < grid_; ++b) {
        blockIdx.x = static_cast<unsigned>(b);
        (*body_)();
        shared_.all.wait();
      }
      turn_.wait();
    }
  }

  Block shared_;
  Barrier turn_;  // of the threads and of who launches
  int64_t grid_ = 0;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::thread> threads_;
};

inline void launch(int64_t grid, int64_t threads, const std::function<void()>& body,
                   size_t shared = 0) {
  static std::map<int64_t, Team> teams;
  teams.try_emplace(threads, static_cast<unsigned>(threads)).first->second.run(grid, body, shared);
}

}  // namespace cuda_shim

#define RC_LAUNCH(kernel, grid, block, stream, ...) \
  ((void)(stream), cuda_shim::launch((grid), (block), [&] { (kernel)(__VA_ARGS__); }))
