#include "lipschitz/skew.h"

#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::lipschitz {
namespace {

void skew_cpu(const SkewArgs& args) {
  run_units(RC_PICK(skew), args, skew_units(args), args.channels * args.channels * args.taps);
}

Tensor skew(const Tensor& weight) {  // [C, C, kh, kw], contiguous
  check(weight.dim() == 4 && weight.size(0) == weight.size(1) && weight.size(2) % 2 == 1 &&
            weight.size(3) % 2 == 1,
        "weight: got shape ", shape_of(weight), ", want [C, C, kh, kw] with odd kh, kw");
  check(weight.is_contiguous(), "weight: want it contiguous");
  SkewArgs args{};
  args.channels = weight.size(0);
  args.taps = weight.size(2) * weight.size(3);
  args.dtype = floating_dtype("weight", weight.scalar_type());
  Tensor out = torch::stable::empty_like(weight);
  args.weight = weight.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (weight.numel() > 0) run(weight, args, skew_cpu, RC_CUDA(skew_cuda));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("skew(Tensor weight) -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("skew", TORCH_BOX(&skew));
}

}  // namespace robustcore::lipschitz
