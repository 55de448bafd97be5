// Schemas and checks of the masking ops. Nothing is allocated or written before every check has
// passed.
#include "common/cuda_stream.h"
#include "common/tensor.h"
#include "masking/launch.h"

namespace robustcore::masking {
namespace {

void check_image(const char* name, const Tensor& t) {
  check(t.dim() == 4, name, ": got shape ", shape_of(t), ", want [N, C, H, W]");
}

// [N | 1, 1, H, W] beside x [N | 1, C, H, W]; how many images both make.
int64_t check_mask(const Tensor& mask, const Tensor& x) {
  check(mask.dim() == 4 && mask.size(1) == 1 && mask.size(2) == x.size(2) &&
            mask.size(3) == x.size(3),
        "mask: got shape ", shape_of(mask), ", want [N, 1, ", x.size(2), ", ", x.size(3),
        "] for an x of shape ", shape_of(x));
  check(mask.size(0) == x.size(0) || mask.size(0) == 1 || x.size(0) == 1, "mask: got ",
        mask.size(0), " masks for ", x.size(0), " images, want as many, or one of either");
  check_same_device("mask", mask, x, "x");
  return x.size(0) == 1 ? mask.size(0) : x.size(0);
}

View4 view_of(const char* name, const Tensor& t) {
  View4 view{t.const_data_ptr(), floating_dtype(name, t.scalar_type()), {}};
  for (int64_t d = 0; d < 4; ++d) view.strides[d] = t.size(d) == 1 ? 0 : t.stride(d);
  return view;
}

FillArgs fill_args(FillMode mode, int64_t images, const Tensor& x, const Tensor& mask,
                   int64_t iters) {
  const int most = mode == FillMode::kTranspose ? kMaxItersTransposed : kMaxIters;
  check(iters >= 0 && iters <= most, "iters: got ", iters, ", want at least 0 and at most ", most,
        " in one pass");
  FillArgs args{};
  args.mode = mode;
  args.images = images;
  args.channels = x.size(1);
  args.rows = x.size(2);
  args.columns = x.size(3);
  args.x = view_of("x", x);
  args.mask = view_of("mask", mask);
  args.iters = static_cast<int32_t>(iters);
  args.dtype = args.x.dtype;
  return args;
}

Tensor run_fill(FillArgs& args, const Tensor& x) {
  const std::vector<int64_t> sizes{args.images, args.channels, args.rows, args.columns};
  const std::vector<int64_t> strides = dense_strides(sizes, channels_last(x));
  Tensor out = empty_on(x, sizes, strides, x.scalar_type());
  args.out = out.mutable_data_ptr();
  for (int d = 0; d < 4; ++d) args.out_strides[d] = strides[d];
  if (out.numel() == 0) return out;
  if (x.is_cuda()) {
    on_cuda(x, [&](void* stream) { fill_cuda(args, stream); });
  } else {
    fill_cpu(args);
  }
  return out;
}

Tensor neighbor_fill(const Tensor& x,     // [N | 1, C, H, W]
                     const Tensor& mask,  // [N | 1, 1, H, W]
                     int64_t iters, bool multiply, bool transpose) {
  check_image("x", x);
  FillArgs args = fill_args(transpose ? FillMode::kTranspose : FillMode::kFill, check_mask(mask, x),
                            x, mask, iters);
  args.multiply = multiply;
  return run_fill(args, x);
}

void neighbor_fill_(Tensor x,            // [N, C, H, W], dense
                    const Tensor& mask,  // [N | 1, 1, H, W]
                    int64_t iters) {
  check_image("x", x);
  FillArgs args = fill_args(FillMode::kFill, check_mask(mask, x), x, mask, iters);
  check(args.images == x.size(0), "x: got one image for ", args.images,
        " masks, which it cannot hold in place");
  check(channels_last(x) || x.is_contiguous(), "x: has to be contiguous or channels_last");
  args.multiply = args.in_place = true;
  args.out = x.mutable_data_ptr();
  const std::vector<int64_t> strides =
      dense_strides({args.images, args.channels, args.rows, args.columns}, channels_last(x));
  for (int d = 0; d < 4; ++d) args.out_strides[d] = strides[d];
  if (x.numel() > 0) fill_cpu(args);
}

Tensor fill_state(const Tensor& mask,  // [N, 1, H, W]
                  int64_t iters) {
  check_image("mask", mask);
  FillArgs args = fill_args(FillMode::kState, check_mask(mask, mask), mask, mask, iters);
  return run_fill(args, mask);
}

EpilogueArgs epilogue_args(const Tensor& x, const OptionalTensor& mask, const OptionalTensor& scale,
                           const OptionalTensor& shift, bool relu) {
  check_image("x", x);
  EpilogueArgs args{};
  args.images = mask ? check_mask(*mask, x) : x.size(0);
  args.channels = x.size(1);
  args.rows = x.size(2);
  args.columns = x.size(3);
  args.x = view_of("x", x);
  args.dtype = args.x.dtype;
  args.channels_last = channels_last(x);
  check(args.channels_last || x.is_contiguous(), "x: has to be contiguous or channels_last");
  if (mask) args.mask = view_of("mask", *mask);
  args.relu = relu;
  const ScalarType arithmetic =
      args.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  const auto per_channel = [&](const char* name, const OptionalTensor& t) -> const void* {
    if (!t) return nullptr;
    check(t->dim() == 1 && t->size(0) == x.size(1) && t->scalar_type() == arithmetic &&
              t->is_contiguous(),
          name, ": got ", name_of(t->scalar_type()), " of shape ", shape_of(*t),
          ", want a contiguous ", name_of(arithmetic), " tensor [", x.size(1), "]");
    check_same_device(name, *t, x, "x");
    return t->const_data_ptr();
  };
  args.scale = per_channel("scale", scale);
  args.shift = per_channel("shift", shift);
  return args;
}

void run_epilogue(const EpilogueArgs& args, const Tensor& x) {
  if (args.images * args.channels * args.rows * args.columns == 0) return;
  if (x.is_cuda()) {
    on_cuda(x, [&](void* stream) { epilogue_cuda(args, stream); });
  } else {
    epilogue_cpu(args);
  }
}

Tensor mask_epilogue(const Tensor& x,              // [N | 1, C, H, W]
                     const OptionalTensor& mask,   // [N | 1, 1, H, W]
                     const OptionalTensor& scale,  // [C]
                     const OptionalTensor& shift,  // [C]
                     bool relu) {
  EpilogueArgs args = epilogue_args(x, mask, scale, shift, relu);
  const std::vector<int64_t> sizes{args.images, args.channels, args.rows, args.columns};
  Tensor out = empty_on(x, sizes, dense_strides(sizes, args.channels_last), x.scalar_type());
  args.out = out.mutable_data_ptr();
  run_epilogue(args, x);
  return out;
}

void mask_epilogue_(Tensor x,                     // [N, C, H, W]
                    const OptionalTensor& mask,   // [N | 1, 1, H, W]
                    const OptionalTensor& scale,  // [C]
                    const OptionalTensor& shift,  // [C]
                    bool relu) {
  EpilogueArgs args = epilogue_args(x, mask, scale, shift, relu);
  check(args.images == x.size(0), "mask: got ", args.images,
        " masks for one image, which has no room for them in place");
  args.out = x.mutable_data_ptr();
  run_epilogue(args, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "neighbor_fill(Tensor x, Tensor mask, SymInt iters, bool multiply, bool transpose) -> "
      "Tensor");
  m.def("neighbor_fill_(Tensor(a!) x, Tensor mask, SymInt iters) -> ()");
  m.def("fill_state(Tensor mask, SymInt iters) -> Tensor");
  m.def("mask_epilogue(Tensor x, Tensor? mask, Tensor? scale, Tensor? shift, bool relu) -> Tensor");
  m.def(
      "mask_epilogue_(Tensor(a!) x, Tensor? mask, Tensor? scale, Tensor? shift, bool relu) -> ()");
}

template <class Library>
void implement(Library& m) {
  m.impl("neighbor_fill", TORCH_BOX(&neighbor_fill));
  m.impl("fill_state", TORCH_BOX(&fill_state));
  m.impl("mask_epilogue", TORCH_BOX(&mask_epilogue));
  m.impl("mask_epilogue_", TORCH_BOX(&mask_epilogue_));
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  implement(m);
  // A GPU block cannot wait for another one's neighbours, and fresh memory is cheap there.
  m.impl("neighbor_fill_", TORCH_BOX(&neighbor_fill_));
}
STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  implement(m);
}

}  // namespace robustcore::masking
