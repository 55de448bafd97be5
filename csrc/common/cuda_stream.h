// Guarded access to CUDA from code that also runs on a CPU-only torch.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "common/tensor.h"

#if defined(RC_WITH_CUDA)
// Weak: null on a CPU-only torch, found on a CUDA torch.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif

namespace robustcore {

// Calls launch(stream) with the device of `t` current, on that device's current stream.
template <class Launch>
void on_cuda(const Tensor& t, const Launch& launch) {
#if defined(RC_WITH_CUDA)
  check(aoti_torch_get_current_cuda_stream != nullptr,
        "robustcore: a CUDA tensor arrived but this torch has no CUDA");
  const int32_t device = t.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream(device, &stream) == 0,
        "robustcore: no current CUDA stream on device ", device);
  launch(stream);
#else
  (void)t, (void)launch;
  fail(
      "robustcore: this build has no CUDA kernels (ROBUSTCORE_CUDA=off, or no compiler for them "
      "was "
      "found); reinstall with ROBUSTCORE_CUDA=auto, or move the tensors to the CPU");
#endif
}

}  // namespace robustcore
