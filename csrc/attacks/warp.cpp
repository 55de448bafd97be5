// Nothing is allocated or written before every check has passed.
#include "attacks/warp.h"

#include <algorithm>

#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

// 32 bits index the pixels of a padded plane.
constexpr int64_t kMaxPlane = int64_t{1} << 31;
// Floats laid out at a time: what images share is read while it is in cache.
constexpr int64_t kBlock = int64_t{1} << 22;

void warp_cpu(const WarpArgs& all) {
  const int64_t floats = all.dtype == DType::kFloat64 ? 4 : 2;
  const int64_t per_image = all.channels * all.padded() * floats;
  const int64_t most = std::clamp<int64_t>(kBlock / per_image, 1, all.images);
  const Scratch corners(most * per_image);
  WarpArgs args = all;
  args.corners = corners.data();
  for (args.first = 0; args.first < all.images; args.first += most) {
    const int64_t images = std::min(most, all.images - args.first);
    const int64_t laid_out = images * args.channels * (args.padded() / args.padded_columns());
    run_units(RC_PICK(warp_corners), args, laid_out, images * per_image);
    const int64_t rows = images * args.poses * args.rows;
    run_units(RC_PICK(warp), args, rows, rows * args.channels * args.columns * 4);
  }
}

void warp_transposed_cpu(const WarpArgs& args) {
  const int64_t planes = args.images * args.channels;
  run_units(RC_PICK(warp_transposed), args, planes, planes * args.pixels() * args.poses * 4);
}

// Of planes [..., C, H, W] that begin at dimension `first`.
WarpArgs warp_args(const char* name, const Tensor& t, int64_t first, const Tensor& turns) {
  check(t.is_contiguous(), name, ": has to be contiguous");
  WarpArgs args{};
  args.images = t.size(0), args.channels = t.size(first);
  args.rows = t.size(first + 1), args.columns = t.size(first + 2);
  check(args.padded() < kMaxPlane, name, ": got ", args.rows, " x ", args.columns,
        " pixels, want (rows + 4) * (columns + 4) below 2**31");
  args.dtype = floating_dtype(name, t.scalar_type());
  const bool wide = args.dtype == DType::kFloat64;
  check(turns.dim() == 3 && turns.size(2) == 4 && turns.is_contiguous() &&
            (turns.size(0) == 1 || turns.size(0) == args.images) &&
            turns.scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
        "turns: got ", name_of(turns.scalar_type()), " of shape ", shape_of(turns),
        ", want contiguous [1 or ", args.images, ", P, 4]");
  check_same_device("turns", turns, t, name);
  args.poses = turns.size(1);
  args.turns = turns.const_data_ptr();
  args.turns_stride = turns.size(0) == 1 ? 0 : args.poses * 4;
  args.in = t.const_data_ptr();
  return args;
}

Tensor output(const Tensor& on, const std::vector<int64_t>& sizes) {
  return empty_on(on, sizes, dense_strides(sizes, false), on.scalar_type());
}

Tensor warp_images(const Tensor& x,        // [B, C, H, W]
                   const Tensor& turns) {  // [B | 1, P, 4]
  check(x.dim() == 4, "x: got shape ", shape_of(x), ", want [B, C, H, W]");
  WarpArgs args = warp_args("x", x, 1, turns);
  Tensor out = output(x, {args.images, args.poses, args.channels, args.rows, args.columns});
  args.out = out.mutable_data_ptr();
  if (out.numel() > 0) run(x, args, warp_cpu, RC_CUDA(warp_cuda));
  return out;
}

Tensor warp_images_transposed(const Tensor& grad,     // [B, P, C, H, W]
                              const Tensor& turns) {  // [B | 1, P, 4]
  check(grad.dim() == 5, "grad: got shape ", shape_of(grad), ", want [B, P, C, H, W]");
  WarpArgs args = warp_args("grad", grad, 2, turns);
  check(grad.size(1) == args.poses, "grad: got ", grad.size(1), " poses, want ", args.poses);
  Tensor out = output(grad, {args.images, args.channels, args.rows, args.columns});
  args.out = out.mutable_data_ptr();
  if (out.numel() > 0) run(grad, args, warp_transposed_cpu, RC_CUDA(warp_transposed_cuda));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("warp_images(Tensor x, Tensor turns) -> Tensor");
  m.def("warp_images_transposed(Tensor grad, Tensor turns) -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("warp_images", TORCH_BOX(&warp_images));
  m.impl("warp_images_transposed", TORCH_BOX(&warp_images_transposed));
}

}  // namespace robustcore::attacks
