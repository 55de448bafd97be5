// The masks are a workspace of one bit a pixel and sample: made in one pass, read by the selection.
#include "smoothing/ablation.h"

#include "common/cpu.h"
#include "common/device.h"
#include "common/stream_arguments.h"
#include "smoothing/output.h"

namespace robustcore::smoothing {
namespace {

void pixel_masks_cpu(const PixelMaskArgs& args) {
  const int64_t masks = args.images * args.samples;
  run_units(RC_PICK(pixel_masks), args, masks, masks * (args.pixels / 8 + args.kept * 4));
}

void patch_masks_cpu(const PatchMaskArgs& args) {
  run_units(RC_PICK(patch_masks), args, args.samples, args.samples * args.height * args.width);
}

void select_cpu(const SelectArgs& args) {
  run_units(RC_PICK(select), args, select_tiling(args).units(),
            args.images * args.samples * args.channels * args.pixels);
}

void kept_sums_cpu(const KeptSumsArgs& args) {
  run_units(RC_PICK(kept_sums), args, kept_sums_units(args),
            args.images * args.samples * args.channels * args.pixels);
}

// The masks of one call, on the device of `on`.
struct Masks {
  Tensor storage;
  int64_t images;  // 1: the same for all

  Masks(const Tensor& on, int64_t images, int64_t samples, int64_t pixels)
      : storage(empty_on(on, {images, samples, mask_words(pixels)},
                         {samples * mask_words(pixels), mask_words(pixels), 1}, ScalarType::Int)),
        images(images) {}
  uint32_t* data() {
    return reinterpret_cast<uint32_t*>(storage.mutable_data_ptr());
  }
};

int64_t pixels_of(const char* name, const Tensor& t, int64_t first_dim) {
  const int64_t pixels = elements_of(t, first_dim);
  check(pixels <= kMaxPixels, name, ": got ", pixels, " pixels an image, want at most 2**24");
  return pixels;
}

PixelMaskArgs pixel_mask_args(const Tensor& t, int64_t samples, int64_t pixels, int64_t k,
                              const StreamArguments& stream) {
  check(k >= 0 && k <= pixels, "k: got ", k, " of ", pixels, " pixels, want an integer in [0, ",
        pixels, "]");
  PixelMaskArgs args{};
  args.images = t.size(0), args.samples = samples, args.pixels = pixels, args.kept = k;
  args.stream = make_stream(t, args.images, samples, pixels, stream);
  return args;
}

Masks make_masks(const Tensor& on, PixelMaskArgs args) {
  Masks masks(on, args.images, args.samples, args.pixels);
  args.masks = masks.data();
  if (args.images * args.samples * args.pixels == 0) return masks;
  run(on, args, pixel_masks_cpu, RC_CUDA(pixel_masks_cuda));
  return masks;
}

struct Window {
  int64_t patch_h, patch_w, stride_h, stride_w, first;
};

PatchMaskArgs patch_mask_args(const char* name, const Tensor& t, int64_t samples,
                              const Window& window) {
  PatchMaskArgs args{};
  args.height = t.size(t.dim() - 2), args.width = t.size(t.dim() - 1);
  const auto check_axis = [&](const char* axis, int64_t size, int64_t patch, int64_t stride) {
    check(patch >= 1 && patch <= size, "size: got ", patch, " for a ", axis, " of ", size,
          ", want an integer in [1, ", size, "]");
    check(stride >= 1 && stride <= size, "stride: got ", stride, " for a ", axis, " of ", size,
          ", want an integer in [1, ", size, "]");
  };
  pixels_of(name, t, t.dim() - 2);
  if (args.height * args.width > 0) {
    check_axis("height", args.height, window.patch_h, window.stride_h);
    check_axis("width", args.width, window.patch_w, window.stride_w);
    args.columns = ceil_div(args.width, window.stride_w);
    const int64_t positions = args.columns * ceil_div(args.height, window.stride_h);
    check(samples >= 0 && window.first >= 0 && window.first + samples <= positions,
          "positions: got ", window.first, " to ", window.first + samples, ", there are ",
          positions);
  }
  args.samples = samples, args.first = window.first;
  args.patch_h = window.patch_h, args.patch_w = window.patch_w;
  args.stride_h = window.stride_h, args.stride_w = window.stride_w;
  return args;
}

Masks make_masks(const Tensor& on, PatchMaskArgs args) {
  Masks masks(on, 1, args.samples, args.height * args.width);
  args.masks = masks.data();
  if (args.samples * args.height * args.width == 0) return masks;
  run(on, args, patch_masks_cpu, RC_CUDA(patch_masks_cuda));
  return masks;
}

// Everything about a selection but its masks and its output.
SelectArgs select_args(const Tensor& values,        // [B, C, *D]
                       const OptionalTensor& fill,  // broadcasts to [B, C, *D]
                       int64_t samples) {
  check(values.dim() >= 3, "x: got shape ", shape_of(values), ", want [B, C, *D]");
  check(samples >= 0, "num_samples: got ", samples, ", want at least 0");
  SelectArgs args{};
  args.images = values.size(0), args.samples = samples, args.channels = values.size(1);
  args.pixels = pixels_of("x", values, 2);
  args.values = strided_view("x", values, values.sizes());
  if (fill) {
    check_same_device("fill", *fill, values, "x");
    args.fill = strided_view("fill", *fill, values.sizes());
  }
  return args;
}

template <class MaskArgs>
void select_into(SelectArgs args, const MaskArgs& mask_args, const Tensor& values,
                 bool channels_last, Tensor& out) {
  if (args.images * args.samples * args.channels * args.pixels == 0) return;
  Masks masks = make_masks(values, mask_args);
  args.masks = masks.data(), args.mask_images = masks.images;
  args.out = out.mutable_data_ptr();
  args.out_dtype = floating_dtype("out", out.scalar_type());
  args.channels_last = channels_last && args.channels > 1 && args.pixels > 1;
  run(values, args, select_cpu, RC_CUDA(select_cuda));
}

template <class MaskArgs>
Tensor select_new(const SelectArgs& args, const MaskArgs& mask_args, const Tensor& values,
                  ScalarType dtype, bool channels_last) {
  floating_dtype("dtype", dtype);
  const OutputLayout layout = output_layout(values, args.samples, channels_last);
  Tensor out = empty_on(values, layout.sizes, layout.strides, dtype);
  select_into(args, mask_args, values, channels_last, out);
  return out;
}

template <class MaskArgs>
void select_out(const SelectArgs& args, const MaskArgs& mask_args, const Tensor& values,
                bool channels_last, Tensor& out) {
  check_same_device("out", out, values, "x");
  floating_dtype("out", out.scalar_type());
  check_layout(out, output_layout(values, args.samples, channels_last), channels_last);
  select_into(args, mask_args, values, channels_last, out);
}

template <class MaskArgs>
Tensor kept_sums(const Tensor& grad, const MaskArgs& mask_args) {
  KeptSumsArgs args{};
  args.images = grad.size(0), args.samples = grad.size(1), args.channels = grad.size(2);
  args.pixels = elements_of(grad, 3);
  args.grad = strided_view("grad", grad, grad.sizes(), /*has_samples=*/true);
  std::vector<int64_t> sizes{grad.size(0)};
  for (int64_t d = 2; d < grad.dim(); ++d) sizes.push_back(grad.size(d));
  const auto dtype = args.grad.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  Tensor sum = torch::stable::new_zeros(grad, sizes, dtype);
  if (args.images * args.samples * args.channels * args.pixels == 0) return sum;
  Masks masks = make_masks(grad, mask_args);
  args.masks = masks.data(), args.mask_images = masks.images;
  args.sum = sum.mutable_data_ptr();
  run(grad, args, kept_sums_cpu, RC_CUDA(kept_sums_cuda));
  return sum;
}

Tensor ablate_pixels(const Tensor& values, const OptionalTensor& fill, int64_t num_samples,
                     int64_t k, RC_STREAM_PARAMETERS, ScalarType dtype, bool channels_last) {
  const SelectArgs args = select_args(values, fill, num_samples);
  return select_new(args, pixel_mask_args(values, num_samples, args.pixels, k, RC_STREAM_ARGUMENTS),
                    values, dtype, channels_last);
}

void ablate_pixels_out(const Tensor& values, const OptionalTensor& fill, int64_t num_samples,
                       int64_t k, RC_STREAM_PARAMETERS, bool channels_last, Tensor out) {
  const SelectArgs args = select_args(values, fill, num_samples);
  select_out(args, pixel_mask_args(values, num_samples, args.pixels, k, RC_STREAM_ARGUMENTS),
             values, channels_last, out);
}

Tensor ablate_pixels_sums(const Tensor& grad,  // [B, S, C, *D]
                          int64_t k, RC_STREAM_PARAMETERS) {
  check(grad.dim() >= 4, "grad: got shape ", shape_of(grad), ", want [B, S, C, *D]");
  return kept_sums(grad, pixel_mask_args(grad, grad.size(1), pixels_of("grad", grad, 3), k,
                                         RC_STREAM_ARGUMENTS));
}

Tensor ablate_patches(const Tensor& values, const OptionalTensor& fill, int64_t num_positions,
                      int64_t first, int64_t patch_h, int64_t patch_w, int64_t stride_h,
                      int64_t stride_w, ScalarType dtype, bool channels_last) {
  check(values.dim() == 4, "x: got shape ", shape_of(values), ", want [B, C, H, W]");
  const SelectArgs args = select_args(values, fill, num_positions);
  const Window window{patch_h, patch_w, stride_h, stride_w, first};
  return select_new(args, patch_mask_args("x", values, num_positions, window), values, dtype,
                    channels_last);
}

void ablate_patches_out(const Tensor& values, const OptionalTensor& fill, int64_t num_positions,
                        int64_t first, int64_t patch_h, int64_t patch_w, int64_t stride_h,
                        int64_t stride_w, bool channels_last, Tensor out) {
  check(values.dim() == 4, "x: got shape ", shape_of(values), ", want [B, C, H, W]");
  const SelectArgs args = select_args(values, fill, num_positions);
  const Window window{patch_h, patch_w, stride_h, stride_w, first};
  select_out(args, patch_mask_args("x", values, num_positions, window), values, channels_last, out);
}

Tensor ablate_patches_sums(const Tensor& grad,  // [B, S, C, H, W]
                           int64_t first, int64_t patch_h, int64_t patch_w, int64_t stride_h,
                           int64_t stride_w) {
  check(grad.dim() == 5, "grad: got shape ", shape_of(grad), ", want [B, S, C, H, W]");
  const Window window{patch_h, patch_w, stride_h, stride_w, first};
  return kept_sums(grad, patch_mask_args("grad", grad, grad.size(1), window));
}

}  // namespace

#define RC_WINDOW_SCHEMA \
  "SymInt first, SymInt patch_h, SymInt patch_w, SymInt stride_h, SymInt stride_w"
#define RC_PIXEL_SCHEMA \
  "Tensor values, Tensor? fill, SymInt num_samples, SymInt k, " RC_STREAM_SCHEMA ", "
#define RC_PATCH_SCHEMA "Tensor values, Tensor? fill, SymInt num_positions, " RC_WINDOW_SCHEMA ", "

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("ablate_pixels(" RC_PIXEL_SCHEMA "ScalarType dtype, bool channels_last) -> Tensor");
  m.def("ablate_pixels_out(" RC_PIXEL_SCHEMA "bool channels_last, Tensor(a!) out) -> ()");
  m.def("ablate_pixels_sums(Tensor grad, SymInt k, " RC_STREAM_SCHEMA ") -> Tensor");
  m.def("ablate_patches(" RC_PATCH_SCHEMA "ScalarType dtype, bool channels_last) -> Tensor");
  m.def("ablate_patches_out(" RC_PATCH_SCHEMA "bool channels_last, Tensor(a!) out) -> ()");
  m.def("ablate_patches_sums(Tensor grad, " RC_WINDOW_SCHEMA ") -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("ablate_pixels", TORCH_BOX(&ablate_pixels));
  m.impl("ablate_pixels_out", TORCH_BOX(&ablate_pixels_out));
  m.impl("ablate_pixels_sums", TORCH_BOX(&ablate_pixels_sums));
  m.impl("ablate_patches", TORCH_BOX(&ablate_patches));
  m.impl("ablate_patches_out", TORCH_BOX(&ablate_patches_out));
  m.impl("ablate_patches_sums", TORCH_BOX(&ablate_patches_sums));
}

}  // namespace robustcore::smoothing
