// The family's launchers, one for each kind of device; ops.cpp calls them with checked arguments.
#pragma once

#include "smoothing/ablation.h"

namespace robustcore::smoothing {

void noise_cpu(const NoiseArgs& args);
void sums_cpu(const SumsArgs& args);
void votes_cpu(const VotesArgs& args);
void pixel_masks_cpu(const PixelMaskArgs& args);
void patch_masks_cpu(const PatchMaskArgs& args);
void select_cpu(const SelectArgs& args);
void kept_sums_cpu(const KeptSumsArgs& args);

// `stream` is a cudaStream_t; throws std::runtime_error if the launch fails.
void noise_cuda(const NoiseArgs& args, void* stream);
void sums_cuda(const SumsArgs& args, void* stream);
void votes_cuda(const VotesArgs& args, void* stream);
void pixel_masks_cuda(const PixelMaskArgs& args, void* stream);
void patch_masks_cuda(const PatchMaskArgs& args, void* stream);
void select_cuda(const SelectArgs& args, void* stream);
void kept_sums_cuda(const KeptSumsArgs& args, void* stream);

}  // namespace robustcore::smoothing
