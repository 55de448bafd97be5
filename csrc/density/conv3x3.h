// A 3 x 3 convolution of stride 1 by Winograd's minimal filtering, its transpose, and the gradient
// of its filter: what a model's double backward consists of. float32, on the CPU.
#pragma once

#include "common/variants.h"
#include "common/winograd_plan.h"

namespace robustcore::density {

// y = the correlation of x, with its border of zeros, with the filter, + bias.
struct Conv3x3Args {
  WinogradPlan plan;
  bool channels_last;   // x and y, else contiguous
  const float* x;       // [images, in, height, width]
  const float* filter;  // packed
  const float* bias;    // [out], or null
  float* y;             // [images, out, out_height, out_width]

  int64_t dense() const {  // floats of a group's results with padded channels
    const WinogradShape& s = plan.shape;
    return channels_last ? 0 : plan.group * s.out_height() * s.out_width() * plan.out;
  }
  int64_t scratch() const {
    return plan.staged() + plan.patches() + plan.products() + plan.out + dense();
  }
};
RC_WIDE_VARIANTS(conv3x3, const Conv3x3Args& args, float* scratch, int64_t begin, int64_t end);

// The first pass of the gradient of its filter: the correlation of grad[o] with x[i].
struct Conv3x3FactorsArgs {
  WinogradGradientPlan plan;
  bool x_is_last, grad_is_last;  // channels last, else contiguous
  const float* x;                // [images, in, height, width]
  const float* grad;             // [images, out, out_height, out_width]
  float* work;                   // [plan.work()]

  int64_t dense() const {  // floats of a group's gradient with padded channels
    const WinogradShape& s = plan.shape;
    return grad_is_last ? 0 : plan.group * s.out_height() * s.out_width() * plan.out;
  }
  int64_t scratch() const {
    return plan.staged() + plan.first_scratch() + dense();
  }
};
RC_WIDE_VARIANTS(conv3x3_factors, const Conv3x3FactorsArgs& args, float* scratch, int64_t begin,
                 int64_t end);

}  // namespace robustcore::density
