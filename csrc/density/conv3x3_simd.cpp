#include "common/winograd_group.h"
#include "density/conv3x3.h"

#if defined(__AVX2__)
namespace robustcore::density {
inline namespace RC_ISA {
namespace {

template <int M>
void convolve_groups(const Conv3x3Args& args, float* floats, int64_t begin, int64_t end) {
  const WinogradPlan& plan = args.plan;
  const int64_t out = plan.shape.out, pixels = plan.shape.out_height() * plan.shape.out_width();
  ScratchFloats scratch(floats);
  float* staged = scratch.take_zeros(plan.staged());
  float* patches = scratch.take(plan.patches());
  float* products = scratch.take(plan.products());
  float* bias = scratch.take_zeros(plan.out);
  if (args.bias) memcpy(bias, args.bias, out * sizeof(float));
  float* dense = scratch.take(args.dense());

  WinogradGroup<M> group(plan);
  for (int64_t g = begin; g < end; ++g) {
    group.start(g);
    group.stage(args.x, args.channels_last, staged);
    float* y = args.y + group.first_image() * pixels * out;
    float* rows = args.channels_last ? y : dense;
    const int64_t pixel = args.channels_last ? out : plan.out;
    group.for_each_run([&](int64_t) {
      group.transform(staged, patches);
      group.convolve(patches, args.filter, products, [=](const auto& at, int64_t c, auto v) {
        store_first(rows + at.dense * pixel + c, v + Lanes::load(bias + c), out - c);
      });
    });
    for (int64_t i = 0; i < group.images() && !args.channels_last; ++i) {
      rows_to_image(rows + i * pixels * pixel, pixel, out, pixels, y + i * pixels * out);
    }
  }
}

template <int M>
void factor_groups(const Conv3x3FactorsArgs& args, float* floats, int64_t begin, int64_t end) {
  const WinogradGradientPlan& plan = args.plan;
  const int64_t out = plan.shape.out, height = plan.shape.out_height();
  const int64_t width = plan.shape.out_width(), pixels = height * width;
  ScratchFloats scratch(floats);
  float* staged = scratch.take_zeros(plan.staged());
  WinogradFactors factors(plan, args.work, scratch.take(plan.first_scratch()));
  float* dense = scratch.take_zeros(args.dense());

  WinogradGroup<M> group(plan);
  factors.for_each_group(begin, end, [&](int64_t g) {
    group.start(g);
    group.stage(args.x, args.x_is_last, staged);
    const float* grad = args.grad + group.first_image() * pixels * out;
    for (int64_t i = 0; i < group.images() && !args.grad_is_last; ++i) {
      image_to_rows(grad + i * pixels * out, out, height, width, false,
                    {dense + i * pixels * plan.out, width * plan.out, plan.out});
    }
    const float* rows = args.grad_is_last ? grad : dense;
    const int64_t channels = args.grad_is_last ? out : plan.out;
    group.for_each_run([&](int64_t run) {
      group.transform_adjoint(rows, channels, 1.0f, factors.out(run, 0));
      group.transform(staged, factors.in(run, 0));
      factors.add(group.tiles(), 0);
    });
  });
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(conv3x3)(const Conv3x3Args& args, float* scratch, int64_t begin, int64_t end) {
  dispatch_tile(args.plan.shape.tile,
                [&](auto tile) { convolve_groups<tile>(args, scratch, begin, end); });
}

void RC_VARIANT(conv3x3_factors)(const Conv3x3FactorsArgs& args, float* scratch, int64_t begin,
                                 int64_t end) {
  dispatch_tile(args.plan.shape.tile,
                [&](auto tile) { factor_groups<tile>(args, scratch, begin, end); });
}

}  // namespace robustcore::density
#endif
