// The family's launchers, one for each kind of device; ops.cpp calls them with checked arguments.
#pragma once

#include <optional>

#include "lipschitz/lipschitz.h"

namespace robustcore::lipschitz {

void update_cpu(const UpdateArgs& args);
void series_cpu(const SeriesArgs& args);
void series_backward_cpu(const SeriesBackwardArgs& args);
void series_gradient_cpu(const SeriesBackwardArgs& args);
void series_kernel_cpu(const SeriesKernelArgs& args);
void skew_cpu(const SkewArgs& args);
void maxmin_cpu(const MaxMinArgs& args);
void swap_cpu(const SwapArgs& args);
void map_cpu(Map map, const MapArgs& args);
void map_backward_cpu(Map map, const MapBackwardArgs& args);

// How the active instruction set cuts up a series; nothing where it has no kernel for one.
struct SeriesSizes {
  int64_t kernel, work;  // floats of the packed kernel, of the backward pass's work
};
std::optional<SeriesSizes> series_sizes(const SeriesArgs& args);

// `stream` is a cudaStream_t; throws std::runtime_error if the launch fails.
void update_cuda(const UpdateArgs& args, void* stream);
void skew_cuda(const SkewArgs& args, void* stream);
void maxmin_cuda(const MaxMinArgs& args, void* stream);
void swap_cuda(const SwapArgs& args, void* stream);
void map_cuda(Map map, const MapArgs& args, void* stream);
void map_backward_cuda(Map map, const MapBackwardArgs& args, void* stream);

}  // namespace robustcore::lipschitz
