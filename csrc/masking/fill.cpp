// Nothing is allocated or written before every check has passed.
#include "masking/fill.h"

#include "common/cpu.h"
#include "common/device.h"
#include "masking/checks.h"

namespace robustcore::masking {
namespace {

void fill_cpu(const FillArgs& args) {
  run_units(RC_PICK(fill), args, FillTiling(args).units(args),
            args.images * args.channels * args.rows * args.columns * (args.iters + 1));
}

// Everything about a fill but its output.
FillArgs fill_args(FillMode mode,
                   const Tensor& x,     // [N | 1, C, H, W]
                   const Tensor& mask,  // [N | 1, 1, H, W]
                   int64_t iters) {
  check_image("x", x);
  const int most = mode == FillMode::kTranspose ? kMaxItersTransposed : kMaxIters;
  FillArgs args{};
  args.mode = mode;
  args.images = check_mask(mask, x);
  check(iters >= 0 && iters <= most, "iters: got ", iters, ", want at least 0 and at most ", most,
        " in one pass");
  args.channels = x.size(1);
  args.rows = x.size(2);
  args.columns = x.size(3);
  args.x = view_of("x", x);
  args.mask = view_of("mask", mask);
  args.iters = static_cast<int32_t>(iters);
  args.dtype = args.x.dtype;
  return args;
}

void set_out(FillArgs& args, Tensor& out, const std::vector<int64_t>& strides) {
  args.out = out.mutable_data_ptr();
  for (int d = 0; d < 4; ++d) args.out_strides[d] = strides[d];
}

Tensor fill_new(FillArgs args, const Tensor& x) {
  const std::vector<int64_t> sizes{args.images, args.channels, args.rows, args.columns};
  const std::vector<int64_t> strides = dense_strides(sizes, channels_last(x));
  Tensor out = empty_on(x, sizes, strides, x.scalar_type());
  set_out(args, out, strides);
  if (out.numel() > 0) run(x, args, fill_cpu, RC_CUDA(fill_cuda));
  return out;
}

Tensor neighbor_fill(const Tensor& x,     // [N | 1, C, H, W]
                     const Tensor& mask,  // [N | 1, 1, H, W]
                     int64_t iters, bool multiply, bool transpose) {
  FillArgs args = fill_args(transpose ? FillMode::kTranspose : FillMode::kFill, x, mask, iters);
  args.multiply = multiply;
  return fill_new(args, x);
}

void neighbor_fill_(Tensor x,            // [N, C, H, W], dense
                    const Tensor& mask,  // [N | 1, 1, H, W]
                    int64_t iters) {
  FillArgs args = fill_args(FillMode::kFill, x, mask, iters);
  check(args.images == x.size(0), "x: got one image for ", args.images,
        " masks, which it cannot hold in place");
  check(channels_last(x) || x.is_contiguous(), "x: has to be contiguous or channels_last");
  args.multiply = args.in_place = true;
  set_out(args, x,
          dense_strides({args.images, args.channels, args.rows, args.columns}, channels_last(x)));
  if (x.numel() > 0) fill_cpu(args);
}

Tensor fill_state(const Tensor& mask,  // [N, 1, H, W]
                  int64_t iters) {
  check_image("mask", mask);
  return fill_new(fill_args(FillMode::kState, mask, mask, iters), mask);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "neighbor_fill(Tensor x, Tensor mask, SymInt iters, bool multiply, bool transpose) -> "
      "Tensor");
  m.def("neighbor_fill_(Tensor(a!) x, Tensor mask, SymInt iters) -> ()");
  m.def("fill_state(Tensor mask, SymInt iters) -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("neighbor_fill", TORCH_BOX(&neighbor_fill));
  m.impl("fill_state", TORCH_BOX(&fill_state));
}

// On the CPU alone: a GPU block cannot wait for another one's neighbours, and fresh memory is cheap
// there.
STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("neighbor_fill_", TORCH_BOX(&neighbor_fill_));
}

}  // namespace robustcore::masking
