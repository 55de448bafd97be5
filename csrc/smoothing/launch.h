// The family's launchers, one for each kind of device; ops.cpp calls them with checked arguments.
#pragma once

#include "smoothing/smoothing.h"

namespace robustcore::smoothing {

void noise_cpu(const NoiseArgs& args);
void sums_cpu(const SumsArgs& args);
void votes_cpu(const VotesArgs& args);

// `stream` is a cudaStream_t; throws std::runtime_error if the launch fails.
void noise_cuda(const NoiseArgs& args, void* stream);
void sums_cuda(const SumsArgs& args, void* stream);
void votes_cuda(const VotesArgs& args, void* stream);

}  // namespace robustcore::smoothing
