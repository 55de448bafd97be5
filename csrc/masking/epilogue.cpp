// Nothing is allocated or written before every check has passed.
#include "masking/epilogue.h"

#include "common/cpu.h"
#include "common/device.h"
#include "masking/checks.h"

namespace robustcore::masking {
namespace {

void epilogue_cpu(const EpilogueArgs& args) {
  run_units(RC_PICK(epilogue), args, epilogue_units(args),
            args.images * args.channels * args.rows * args.columns);
}

// Everything about an epilogue but its output.
EpilogueArgs epilogue_args(const Tensor& x,              // [N | 1, C, H, W]
                           const OptionalTensor& mask,   // [N | 1, 1, H, W]
                           const OptionalTensor& scale,  // [C]
                           const OptionalTensor& shift,  // [C]
                           bool relu) {
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

void run_epilogue(EpilogueArgs args, Tensor& out) {
  args.out = out.mutable_data_ptr();
  if (out.numel() > 0) run(out, args, epilogue_cpu, RC_CUDA(epilogue_cuda));
}

Tensor mask_epilogue(const Tensor& x,              // [N | 1, C, H, W]
                     const OptionalTensor& mask,   // [N | 1, 1, H, W]
                     const OptionalTensor& scale,  // [C]
                     const OptionalTensor& shift,  // [C]
                     bool relu) {
  const EpilogueArgs args = epilogue_args(x, mask, scale, shift, relu);
  const std::vector<int64_t> sizes{args.images, args.channels, args.rows, args.columns};
  Tensor out = empty_on(x, sizes, dense_strides(sizes, args.channels_last), x.scalar_type());
  run_epilogue(args, out);
  return out;
}

void mask_epilogue_(Tensor x,                     // [N, C, H, W]
                    const OptionalTensor& mask,   // [N | 1, 1, H, W]
                    const OptionalTensor& scale,  // [C]
                    const OptionalTensor& shift,  // [C]
                    bool relu) {
  const EpilogueArgs args = epilogue_args(x, mask, scale, shift, relu);
  check(args.images == x.size(0), "mask: got ", args.images,
        " masks for one image, which has no room for them in place");
  run_epilogue(args, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("mask_epilogue(Tensor x, Tensor? mask, Tensor? scale, Tensor? shift, bool relu) -> Tensor");
  m.def(
      "mask_epilogue_(Tensor(a!) x, Tensor? mask, Tensor? scale, Tensor? shift, bool relu) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("mask_epilogue", TORCH_BOX(&mask_epilogue));
  m.impl("mask_epilogue_", TORCH_BOX(&mask_epilogue_));
}

}  // namespace robustcore::masking
