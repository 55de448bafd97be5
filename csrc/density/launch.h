// The family's launchers; conv_ops.cpp calls them with checked arguments.
#pragma once

#include "density/conv.h"

namespace robustcore::density {

// Channels by which a convolution's are padded; 0 where this processor has no kernel for it.
int64_t conv_block();
void conv_cpu(const ConvArgs& args);
void conv_kernel_cpu(const ConvKernelArgs& args);
void conv_gradient_cpu(const ConvGradientArgs& args);

}  // namespace robustcore::density
