// What the ops of every kind of noise share: their arguments checked, their outputs made.
#pragma once

#include "common/stream_arguments.h"
#include "smoothing/noise.h"

namespace robustcore::smoothing {

// Everything about the arguments but the output.
NoiseArgs noise_args(Distribution distribution,
                     const Tensor& x,  // [B, *D]
                     int64_t num_samples, double sigma,
                     const OptionalTensor& sigma_map,  // broadcasts to [B, *D]
                     const OptionalTensor& mean, const OptionalTensor& std,  // broadcast to [B, *D]
                     const StreamArguments& stream);

// [B, S, *D], into `out` or a new tensor.
void noise_into(NoiseArgs args, const Tensor& x, bool channels_last, Tensor& out);
Tensor new_noise(NoiseArgs args, const Tensor& x, ScalarType dtype, bool channels_last);

}  // namespace robustcore::smoothing
