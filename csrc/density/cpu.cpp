#include "common/cpu_launch.h"
#include "density/launch.h"
#include "density/simd.h"

namespace robustcore::density {

void lse_cpu(const LseArgs& args) {
  run_units(RC_ACTIVE_KERNELS.lse, args, args.logits.rows, args.logits.rows * args.logits.classes);
}

void lse_grad_cpu(const LseGradArgs& args) {
  run_units(RC_ACTIVE_KERNELS.lse_grad, args, args.logits.rows,
            args.logits.rows * args.logits.classes);
}

void lse_hess_cpu(const LseHessArgs& args) {
  run_units(RC_ACTIVE_KERNELS.lse_hess, args, args.logits.rows,
            args.logits.rows * args.logits.classes);
}

void norm_cpu(const NormArgs& args) {
  run_units(RC_ACTIVE_KERNELS.norm, args, args.rows, args.rows * args.elements);
}

void norm_grad_cpu(const NormGradArgs& args) {
  run_units(RC_ACTIVE_KERNELS.norm_grad, args, args.rows, args.rows * args.elements);
}

void norm_hess_cpu(const NormHessArgs& args) {
  run_units(RC_ACTIVE_KERNELS.norm_hess, args, args.rows, args.rows * args.elements);
}

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

namespace {

// Channels enough for threads to have one each. A unit of work is then a channel, which stays in
// cache from its sums to its sweep.
constexpr int64_t kManyChannels = 16;

void finish(const BatchNormArgs& args, int64_t channel) {
  if (args.dtype == DType::kFloat64) {
    batch_norm_finish<double>(args, channel);
  } else {
    batch_norm_finish<float>(args, channel);
  }
}

}  // namespace

void batch_norm_cpu(const BatchNormArgs& args) {
  const SimdKernels& kernels = RC_ACTIVE_KERNELS;
  BatchNormArgs mean = args;
  mean.pass = BatchNormPass::kMean;
  const bool needs_mean = args.pass == BatchNormPass::kNormalize;
  if (!args.channels_last && args.channels >= kManyChannels) {
    const int64_t grain = ceil_div(kGrainElements, args.count());
    torch::stable::parallel_for(0, args.channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t first = c * args.chunks(), last = first + args.chunks();
        const auto sum = [&](const BatchNormArgs& pass) {
          kernels.batch_norm_sums(pass, first, last);
          finish(pass, c);
        };
        if (needs_mean) sum(mean);
        sum(args);
        kernels.batch_norm_write(args, first, last);
      }
    });
    return;
  }
  const int64_t elements = args.count() * args.channels;
  const auto sum = [&](const BatchNormArgs& pass) {
    run_units(kernels.batch_norm_sums, pass, args.units(), elements);
    for (int64_t c = 0; c < args.channels; ++c) finish(pass, c);
  };
  if (needs_mean) sum(mean);
  sum(args);
  run_units(kernels.batch_norm_write, args, args.units(), elements);
}

}  // namespace robustcore::density
