#include "common/cpu.h"
#include "common/winograd_plan.h"

namespace robustcore {

RC_WIDE_VARIANTS(pack_filter, const PackFilterArgs& args, int64_t begin, int64_t end);
RC_WIDE_VARIANTS(sum_filter_gradient, const FilterGradientArgs& args, float* scratch, int64_t begin,
                 int64_t end);

int64_t winograd_block() {  // kTileBlock of the active instruction set
  const Isa isa = active_isa();
  return isa == Isa::kAvx512 ? 32 : isa == Isa::kAvx2 ? 16 : 0;
}

void pack_filter(const PackFilterArgs& args) {
  const int64_t blocks = ceil_div(args.out, winograd_block());
  run_units(RC_PICK_WIDE(pack_filter), args, blocks, 36 * args.in * args.out);
}

void sum_filter_gradient(const FilterGradientArgs& args) {
  run_with_scratch(RC_PICK_WIDE(sum_filter_gradient), args, args.plan.second_units(),
                   args.plan.second_scratch());
}

}  // namespace robustcore
