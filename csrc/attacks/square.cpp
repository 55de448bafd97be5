// Nothing is allocated or written before every check has passed.
#include "attacks/square.h"

#include <algorithm>

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void square_cpu(const SquareArgs& args) {
  run_units(RC_PICK(square), args, args.rows, args.rows * args.elements());
}

// A start where `best`, `queries` and `share` are missing.
Tensor square_propose(const OptionalTensor& best,     // [N, C, H, W]
                      const Tensor& x0,               // [N, C, H, W]
                      const Tensor& images,           // [N] int64
                      const Tensor& variants,         // [N] int64
                      const OptionalTensor& queries,  // [N] int64
                      const OptionalTensor& share,    // [N]
                      const OptionalTensor& rings,    // [S] float64
                      int64_t norm, double eps, const OptionalTensor& eps_rows, int64_t seed,
                      double low, double high) {
  check(x0.dim() == 4, "x0: got shape ", shape_of(x0), ", want [N, C, H, W]");
  SquareArgs args{};
  args.rows = x0.size(0), args.channels = x0.size(1);
  args.height = x0.size(2), args.width = x0.size(3);
  args.x0 = strided_view("x0", x0, x0.sizes());
  if (best) {
    check_like("best", *best, x0, "x0");
    args.best = strided_view("best", *best, x0.sizes());
  }
  args.images = indices_of("index", images, x0, "x0");
  args.variants = indices_of("variant", variants, x0, "x0");
  if (queries) args.queries = indices_of("age", *queries, x0, "x0");
  args.norm = norm_of(norm);
  check(args.norm != Norm::kL0, "norm: got 3, want 0 to 2");
  if (args.norm != Norm::kLinf) {
    const int64_t sides = std::min(args.height, args.width) + 2;
    check(rings.has_value(), "rings: is missing, as l2 and l1 need it");
    check_vector("rings", *rings, sides, ScalarType::Double, x0, "x0");
    check(rings->is_contiguous(), "rings: has to be contiguous");
    args.rings = rings->const_data_ptr<double>();
  }
  check_eps(args.norm, eps);
  args.eps = row_parameter("eps", eps, eps_rows, x0);
  args.share = row_parameter("share", 1, share, x0);
  args.seed = static_cast<uint64_t>(seed);
  const Box box = box_within(low, high, args.x0.dtype);
  args.low = box.low, args.high = box.high;
  Tensor out = empty_like_images(x0);
  args.place = strided_view("out", out, x0.sizes());
  args.out = out.mutable_data_ptr();
  if (out.numel() > 0) run(x0, args, square_cpu, RC_CUDA(square_cuda));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "square_propose(Tensor? best, Tensor x0, Tensor images, Tensor variants, Tensor? queries, "
      "Tensor? share, Tensor? rings, int norm, float eps, Tensor? eps_rows, SymInt seed, float "
      "low, float high) -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("square_propose", TORCH_BOX(&square_propose));
}

}  // namespace robustcore::attacks
