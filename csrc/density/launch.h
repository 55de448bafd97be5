// The family's launchers, one for each kind of device; ops.cpp calls them with checked arguments.
#pragma once

#include "density/batch_norm.h"
#include "density/conv.h"
#include "density/density.h"

namespace robustcore::density {

void lse_cpu(const LseArgs& args);
void lse_grad_cpu(const LseGradArgs& args);
void lse_hess_cpu(const LseHessArgs& args);
void norm_cpu(const NormArgs& args);
void norm_grad_cpu(const NormGradArgs& args);
void norm_hess_cpu(const NormHessArgs& args);
void batch_norm_cpu(const BatchNormArgs& args);  // kNormalize runs kMean before it

// Channels by which a convolution's are padded; 0 where this processor has no kernel for it.
int64_t conv_block();
void conv_cpu(const ConvArgs& args);
void conv_kernel_cpu(const ConvKernelArgs& args);
void conv_gradient_cpu(const ConvGradientArgs& args);

// `stream` is a cudaStream_t; throws std::runtime_error if the launch fails.
void lse_cuda(const LseArgs& args, void* stream);
void lse_grad_cuda(const LseGradArgs& args, void* stream);
void lse_hess_cuda(const LseHessArgs& args, void* stream);
void norm_cuda(const NormArgs& args, void* stream);
void norm_grad_cuda(const NormGradArgs& args, void* stream);
void norm_hess_cuda(const NormHessArgs& args, void* stream);

}  // namespace robustcore::density
