#include "smoothing/votes.h"

#include <cstring>

#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::smoothing {
namespace {

void votes_cpu(const VotesArgs& args) {
  std::memset(args.counts, 0, args.images * args.classes * sizeof(int64_t));
  run_units(RC_PICK(votes), args, votes_units(args), args.images * args.samples * args.classes);
}

void count_votes_out(const Tensor& logits,  // [B, S, K]
                     Tensor counts) {       // [B, K]
  check(logits.dim() == 3, "logits: got shape ", shape_of(logits), ", want [B, S, K]");
  check(logits.size(2) >= 1, "logits: got no class, shape ", shape_of(logits));
  check(counts.dim() == 2 && counts.size(0) == logits.size(0) && counts.size(1) == logits.size(2) &&
            counts.scalar_type() == ScalarType::Long && counts.is_contiguous(),
        "out: got ", name_of(counts.scalar_type()), " of shape ", shape_of(counts),
        ", want a contiguous int64 tensor [", logits.size(0), ", ", logits.size(2), "]");
  check_same_device("out", counts, logits, "logits");
  VotesArgs args{};
  args.images = logits.size(0);
  args.samples = logits.size(1);
  args.classes = logits.size(2);
  args.logits = strided_view("logits", logits, logits.sizes(), /*has_samples=*/true);
  args.counts = counts.mutable_data_ptr<int64_t>();
  if (args.images == 0) return;
  run(logits, args, votes_cpu, RC_CUDA(votes_cuda));
}

Tensor count_votes(const Tensor& logits) {  // [B, S, K]
  check(logits.dim() == 3, "logits: got shape ", shape_of(logits), ", want [B, S, K]");
  const int64_t images = logits.size(0), classes = logits.size(2);
  Tensor counts = empty_on(logits, {images, classes}, {classes, 1}, ScalarType::Long);
  count_votes_out(logits, counts);
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("count_votes(Tensor logits) -> Tensor");
  m.def("count_votes_out(Tensor logits, Tensor(a!) out) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("count_votes", TORCH_BOX(&count_votes));
  m.impl("count_votes_out", TORCH_BOX(&count_votes_out));
}

}  // namespace robustcore::smoothing
