// Copies from global to shared memory that a thread does not wait for (sm_80 and newer; before, it
// does).
#pragma once

#include "common/cuda.h"

namespace robustcore {

// 16 bytes, both addresses aligned to that; zeros where `there` is false (nothing is read then).
// There when its group is waited for; other threads see it after a barrier behind that.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there = true) {
#if defined(RC_CUDA_SHIM)
  cuda_shim::copy_async(to, from, there);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = there ? *static_cast<const uint4*>(from) : uint4{};
#endif
}

// Closes the group of the copies since the last one.
__device__ __forceinline__ void commit_copies() {
#if defined(RC_CUDA_SHIM)
  cuda_shim::commit_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most the last kGroups groups of this thread are under way.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
#if defined(RC_CUDA_SHIM)
  cuda_shim::wait_copies(kGroups);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

}  // namespace robustcore
