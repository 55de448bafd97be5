// The one choice between CPU and CUDA; on CUDA with the device current and on its current stream.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <type_traits>

#include "common/tensor.h"

#if defined(RC_WITH_CUDA)
// Weak: null on a CPU-only torch, found on a CUDA torch.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
// A launcher, in a build that has CUDA kernels; else null.
#define RC_CUDA(launcher) launcher
#else
#define RC_CUDA(launcher) nullptr
#endif

// RC_LIBRARY_IMPL(m) { m.impl(...); }: the same function for both devices; `run` chooses.
#define RC_LIBRARY_IMPL(m)                                      \
  static void implement(torch::stable::detail::StableLibrary&); \
  STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {               \
    implement(m);                                               \
  }                                                             \
  STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {              \
    implement(m);                                               \
  }                                                             \
  static void implement(torch::stable::detail::StableLibrary& m)

namespace robustcore {

// A launcher's `stream` is a cudaStream_t; it throws std::runtime_error if the launch fails.
template <class Args>
using CpuKernel = void (*)(const std::type_identity_t<Args>& args);
template <class Args>
using CudaKernel = void (*)(const std::type_identity_t<Args>& args, void* stream);

// run(x, args, noise_cpu, RC_CUDA(noise_cuda)): the kernel for the device of `on`.
template <class Args>
void run(const Tensor& on, const Args& args, CpuKernel<Args> cpu,
         [[maybe_unused]] CudaKernel<Args> cuda) {
  if (!on.is_cuda()) return cpu(args);
#if defined(RC_WITH_CUDA)
  check(aoti_torch_get_current_cuda_stream != nullptr,
        "robustcore: a CUDA tensor arrived but this torch has no CUDA");
  const int32_t device = on.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(device, &stream) == 0,
        "robustcore: no current CUDA stream on device ", device);
  cuda(args, stream);
#else
  fail(
      "robustcore: this build has no CUDA kernels; reinstall it with ROBUSTCORE_CUDA=on, or move "
      "the tensors to the CPU");
#endif
}

}  // namespace robustcore
