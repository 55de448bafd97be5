// The family's launchers, one for each kind of device; ops.cpp calls them with checked arguments.
#pragma once

#include "lipschitz/lipschitz.h"

namespace robustcore::lipschitz {

void skew_cpu(const SkewArgs& args);
void maxmin_cpu(const MaxMinArgs& args);
void swap_cpu(const SwapArgs& args);
void map_cpu(Map map, const MapArgs& args);
void map_backward_cpu(Map map, const MapBackwardArgs& args);

// `stream` is a cudaStream_t; throws std::runtime_error if the launch fails.
void skew_cuda(const SkewArgs& args, void* stream);
void maxmin_cuda(const MaxMinArgs& args, void* stream);
void swap_cuda(const SwapArgs& args, void* stream);
void map_cuda(Map map, const MapArgs& args, void* stream);
void map_backward_cuda(Map map, const MapBackwardArgs& args, void* stream);

}  // namespace robustcore::lipschitz
