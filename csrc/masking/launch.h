// The family's launchers, one for each kind of device; ops.cpp calls them with checked arguments.
#pragma once

#include "masking/masking.h"

namespace robustcore::masking {

void fill_cpu(const FillArgs& args);
void epilogue_cpu(const EpilogueArgs& args);

// `stream` is a cudaStream_t; throws std::runtime_error if the launch fails.
void fill_cuda(const FillArgs& args, void* stream);
void epilogue_cuda(const EpilogueArgs& args, void* stream);

}  // namespace robustcore::masking
