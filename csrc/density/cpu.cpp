#include "common/cpu_launch.h"
#include "density/launch.h"
#include "density/simd.h"

namespace robustcore::density {

int64_t conv_block() {
  return RC_ACTIVE_KERNELS.conv_block;
}

void conv_cpu(const ConvArgs& args) {
  const ConvForwardPlan plan(args.shape, conv_block());
  run_with_scratch(RC_ACTIVE_KERNELS.conv, args, plan.groups, plan.scratch(args.shape));
}

void conv_kernel_cpu(const ConvKernelArgs& args) {
  const int64_t units = ceil_div(args.out, conv_block()) * 2;  // of half a block
  run_units(RC_ACTIVE_KERNELS.conv_kernel, args, units, 36 * args.in * args.out);
}

void conv_gradient_cpu(const ConvGradientArgs& args) {
  const ConvGradientPlan plan(args.shape, conv_block());
  run_with_scratch(RC_ACTIVE_KERNELS.conv_factors, args, plan.first_units(),
                   plan.scratch(args.shape));
  run_with_scratch(RC_ACTIVE_KERNELS.conv_gradient, args, plan.second_units(),
                   plan.second_scratch());
}

}  // namespace robustcore::density
