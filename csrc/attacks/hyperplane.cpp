// Nothing is allocated or written before every check has passed.
#include "attacks/hyperplane.h"

#include <algorithm>

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void hyperplane_cpu(const HyperplaneArgs& args) {
  // Four rows of floats hold two of doubles.
  run_with_scratch(RC_PICK(hyperplane), args, args.rows, 4 * args.elements,
                   std::max<int64_t>(args.elements, 1));
}

Tensor hyperplane_projection(const Tensor& x,       // [N, *D]
                             const Tensor& w,       // [N, *D]
                             const Tensor& offset,  // [N]
                             int64_t norm, double low, double high) {
  check(x.dim() >= 1, "x: got a 0-d tensor, want [N, *D]");
  HyperplaneArgs args{};
  args.rows = x.size(0), args.elements = elements_of(x, 1);
  args.norm = norm_of(norm);
  check(args.norm != Norm::kL0, "norm: got l0, want linf, l2 or l1");
  args.x = strided_view("x", x, x.sizes());
  check_like("w", w, x, "x");
  args.w = strided_view("w", w, x.sizes());
  args.offset = row_parameter("b", 0, offset, x);
  const Box box = box_within(low, high, args.x.dtype);
  args.low = box.low, args.high = box.high;
  Tensor out = empty_like_images(x);
  args.place = strided_view("out", out, x.sizes());
  args.out = out.mutable_data_ptr();
  if (out.numel() > 0) run(x, args, hyperplane_cpu, RC_CUDA(hyperplane_cuda));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "hyperplane_projection(Tensor x, Tensor w, Tensor offset, int norm, float low, float high) "
      "-> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("hyperplane_projection", TORCH_BOX(&hyperplane_projection));
}

}  // namespace robustcore::attacks
