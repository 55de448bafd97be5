// Launching CUDA kernels, torch-free. Every kernel starts through RC_LAUNCH and every shuffle goes
// through the wrappers here, so that the tests can stand in for the device (RC_CUDA_SHIM) and run
// the same kernels on CPU threads.
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

namespace robustcore {

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
        "newer "
        "for CUDA 13) or reinstall with an older toolkit's nvcc in PATH";
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

// Blocks loop over units, so a grid never exceeds what the hardware takes.
inline int64_t grid_for(int64_t units) {
  constexpr int64_t kMaxGrid = (int64_t{1} << 31) - 1;
  return units < kMaxGrid ? units : kMaxGrid;
}

}  // namespace robustcore
