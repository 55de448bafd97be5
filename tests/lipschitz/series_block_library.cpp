// The series of the tensor cores as a library that runs it on the CPU, through the shim.
#include "lipschitz/series_block.h"

using namespace robustcore;
using namespace robustcore::lipschitz;

// Images per block and shared memory as the caller wants them; 1 if no plan fits.
extern "C" int run_series_block(int bfloat16, int64_t images, int channels, int height, int width,
                                int degree, const void* x, const void* filter, void* y, void* maps,
                                int64_t map_step, int summed, const float* alpha, const float* beta,
                                const float* gamma, const float* delta, int64_t limit) {
  BlockSeriesArgs args{};
  args.dtype = bfloat16 ? DType::kBFloat16 : DType::kFloat32;
  args.images = images, args.map_step = map_step, args.summed = summed != 0;
  args.x = x, args.filter = filter, args.y = y, args.maps = maps;
  args.shape = {channels, height, width, degree, bfloat16 ? 2 : 4};
  std::copy(alpha, alpha + degree, args.alpha);
  std::copy(beta, beta + degree, args.beta);
  std::copy(gamma, gamma + degree, args.gamma);
  if (summed) std::copy(delta, delta + degree + 1, args.delta);
  const BlockPlan plan = block_plan(args.shape, limit, images, 1);
  if (plan.images == 0) return 1;
  series_block_cuda_as(args, plan, nullptr);
  return 0;
}
