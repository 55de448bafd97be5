// Schemas and checks of the ablation ops. The masks are a workspace of one bit a pixel and sample:
// made in one pass, read by the selection.
#include "common/cuda_stream.h"
#include "smoothing/checks.h"
#include "smoothing/launch.h"

namespace robustcore::smoothing {
namespace {

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
  if (on.is_cuda()) {
    on_cuda(on, [&](void* stream) { pixel_masks_cuda(args, stream); });
  } else {
    pixel_masks_cpu(args);
  }
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
  if (on.is_cuda()) {
    on_cuda(on, [&](void* stream) { patch_masks_cuda(args, stream); });
  } else {
    patch_masks_cpu(args);
  }
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
  if (values.is_cuda()) {
    on_cuda(values, [&](void* stream) { select_cuda(args, stream); });
  } else {
    select_cpu(args);
  }
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
  if (grad.is_cuda()) {
    on_cuda(grad, [&](void* stream) { kept_sums_cuda(args, stream); });
  } else {
    kept_sums_cpu(args);
  }
  return sum;
}

Tensor ablate_pixels(const Tensor& values, const OptionalTensor& fill, int64_t num_samples,
                     int64_t k, int64_t seed, int64_t image_offset, int64_t sample_offset,
                     const OptionalTensor& image_offset_tensor,
                     const OptionalTensor& sample_offset_tensor, ScalarType dtype,
                     bool channels_last) {
  const SelectArgs args = select_args(values, fill, num_samples);
  return select_new(args,
                    pixel_mask_args(values, num_samples, args.pixels, k,
                                    {seed, image_offset, sample_offset, image_offset_tensor,
                                     sample_offset_tensor}),
                    values, dtype, channels_last);
}

void ablate_pixels_out(const Tensor& values, const OptionalTensor& fill, int64_t num_samples,
                       int64_t k, int64_t seed, int64_t image_offset, int64_t sample_offset,
                       const OptionalTensor& image_offset_tensor,
                       const OptionalTensor& sample_offset_tensor, bool channels_last, Tensor out) {
  const SelectArgs args = select_args(values, fill, num_samples);
  select_out(args,
             pixel_mask_args(
                 values, num_samples, args.pixels, k,
                 {seed, image_offset, sample_offset, image_offset_tensor, sample_offset_tensor}),
             values, channels_last, out);
}

Tensor ablate_pixels_sums(const Tensor& grad,  // [B, S, C, *D]
                          int64_t k, int64_t seed, int64_t image_offset, int64_t sample_offset,
                          const OptionalTensor& image_offset_tensor,
                          const OptionalTensor& sample_offset_tensor) {
  check(grad.dim() >= 4, "grad: got shape ", shape_of(grad), ", want [B, S, C, *D]");
  return kept_sums(grad, pixel_mask_args(grad, grad.size(1), pixels_of("grad", grad, 3), k,
                                         {seed, image_offset, sample_offset, image_offset_tensor,
                                          sample_offset_tensor}));
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

#define RC_STREAM_ARGUMENTS                                                               \
  "SymInt seed, SymInt image_offset, SymInt sample_offset, Tensor? image_offset_tensor, " \
  "Tensor? sample_offset_tensor"
#define RC_WINDOW_ARGUMENTS \
  "SymInt first, SymInt patch_h, SymInt patch_w, SymInt stride_h, SymInt stride_w"
#define RC_PIXEL_ARGUMENTS \
  "Tensor values, Tensor? fill, SymInt num_samples, SymInt k, " RC_STREAM_ARGUMENTS ", "
#define RC_PATCH_ARGUMENTS \
  "Tensor values, Tensor? fill, SymInt num_positions, " RC_WINDOW_ARGUMENTS ", "

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("ablate_pixels(" RC_PIXEL_ARGUMENTS "ScalarType dtype, bool channels_last) -> Tensor");
  m.def("ablate_pixels_out(" RC_PIXEL_ARGUMENTS "bool channels_last, Tensor(a!) out) -> ()");
  m.def("ablate_pixels_sums(Tensor grad, SymInt k, " RC_STREAM_ARGUMENTS ") -> Tensor");
  m.def("ablate_patches(" RC_PATCH_ARGUMENTS "ScalarType dtype, bool channels_last) -> Tensor");
  m.def("ablate_patches_out(" RC_PATCH_ARGUMENTS "bool channels_last, Tensor(a!) out) -> ()");
  m.def("ablate_patches_sums(Tensor grad, " RC_WINDOW_ARGUMENTS ") -> Tensor");
}

template <class Library>
void implement_ablation(Library& m) {
  m.impl("ablate_pixels", TORCH_BOX(&ablate_pixels));
  m.impl("ablate_pixels_out", TORCH_BOX(&ablate_pixels_out));
  m.impl("ablate_pixels_sums", TORCH_BOX(&ablate_pixels_sums));
  m.impl("ablate_patches", TORCH_BOX(&ablate_patches));
  m.impl("ablate_patches_out", TORCH_BOX(&ablate_patches_out));
  m.impl("ablate_patches_sums", TORCH_BOX(&ablate_patches_sums));
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  implement_ablation(m);
}
STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  implement_ablation(m);
}

}  // namespace robustcore::smoothing
