// Nothing is allocated or written before every check has passed.
#include "attacks/start.h"

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void start_noise_cpu(const StartArgs& args) {
  run_units(RC_PICK(start_noise), args, args.rows, args.rows * args.elements);
}

Tensor attack_noise(const Tensor& like,     // [N, *D]
                    const Tensor& images,   // [N] int64
                    const Tensor& samples,  // [N] int64
                    int64_t seed, bool normal) {
  check(like.dim() >= 1, "x0: got a 0-d tensor, want [N, *D]");
  StartArgs args{};
  args.rows = like.size(0), args.elements = elements_of(like, 1);
  check(args.elements <= kMaxElements, "x0: got ", args.elements,
        " elements an image, the stream has 2**34");
  args.images = indices_of("index", images, like, "x0");
  args.samples = indices_of("restart", samples, like, "x0");
  args.seed = static_cast<uint64_t>(seed), args.normal = normal;
  args.dtype = floating_dtype("x0", like.scalar_type());
  const std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end());
  Tensor out = empty_on(like, sizes, dense_strides(sizes, false), like.scalar_type());
  args.out = out.mutable_data_ptr();
  if (out.numel() > 0) run(like, args, start_noise_cpu, RC_CUDA(start_noise_cuda));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "attack_noise(Tensor like, Tensor images, Tensor samples, SymInt seed, bool normal) -> "
      "Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("attack_noise", TORCH_BOX(&attack_noise));
}

}  // namespace robustcore::attacks
