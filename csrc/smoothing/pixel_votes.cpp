#include "smoothing/pixel_votes.h"

#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::smoothing {
namespace {

void pixel_votes_cpu(const PixelVotesArgs& args) {
  run_units(RC_PICK(pixel_votes), args, pixel_votes_units(args),
            args.samples * args.classes * args.pixels);
}

void check_counters(const char* name, const Tensor& t, const Tensor& logits, ScalarType dtype,
                    const std::vector<int64_t>& sizes) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  std::ostringstream want;
  for (size_t d = 0; d < sizes.size(); ++d) {
    fits = fits && t.size(d) == sizes[d];
    want << (d ? ", " : "") << sizes[d];
  }
  check(fits && t.scalar_type() == dtype && t.is_contiguous(), name, ": got ",
        name_of(t.scalar_type()), " of shape ", shape_of(t), ", want a contiguous ", name_of(dtype),
        " tensor [", want.str(), "]");
  check_same_device(name, t, logits, "logits");
}

void add_pixel_votes(Tensor counts,                  // [K, *D]; with chosen [*D]
                     const Tensor& logits,           // [N, K, *D]
                     const OptionalTensor chosen) {  // [*D]
  check(logits.dim() >= 2, "logits: got shape ", shape_of(logits), ", want [N, K, *D]");
  check(logits.size(0) < int64_t{1} << 31, "logits: got ", logits.size(0),
        " samples, want fewer than 2**31, which int32 counters hold");
  check(logits.size(1) >= 1, "logits: got no class, shape ", shape_of(logits));
  std::vector<int64_t> sizes;
  for (int64_t d = 2; d < logits.dim(); ++d) sizes.push_back(logits.size(d));
  if (chosen) check_counters("chosen", *chosen, logits, ScalarType::Long, sizes);
  if (!chosen) sizes.insert(sizes.begin(), logits.size(1));
  check_counters("counts", counts, logits, ScalarType::Int, sizes);
  PixelVotesArgs args{};
  args.samples = logits.size(0), args.classes = logits.size(1);
  args.pixels = elements_of(logits, 2);
  args.logits = strided_view("logits", logits, logits.sizes(), /*has_samples=*/true);
  args.chosen = chosen ? chosen->const_data_ptr<int64_t>() : nullptr;
  args.counts = counts.mutable_data_ptr<int32_t>();
  if (args.samples == 0 || args.pixels == 0) return;
  run(logits, args, pixel_votes_cpu, RC_CUDA(pixel_votes_cuda));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("add_pixel_votes(Tensor(a!) counts, Tensor logits, Tensor? chosen) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("add_pixel_votes", TORCH_BOX(&add_pixel_votes));
}

}  // namespace robustcore::smoothing
