// Schemas and checks of the smoothing ops. Nothing is allocated or written before every check has
// passed.
#include <cmath>

#include "common/cuda_stream.h"
#include "common/tensor.h"
#include "smoothing/launch.h"

namespace robustcore::smoothing {
namespace {

Stream make_stream(const Tensor& x, int64_t images, int64_t samples, int64_t elements, int64_t seed,
                   int64_t image_offset, int64_t sample_offset,
                   const OptionalTensor& sample_offset_tensor) {
  check(elements <= kMaxElements, "x: got ", elements, " elements an image, the stream has 2**34");
  check(image_offset >= 0 && image_offset <= kMaxImages - images, "image_offset: got ",
        image_offset, " for ", images, " images, want indices in [0, 2**48)");
  check(sample_offset >= 0 && sample_offset <= kMaxSamples - samples, "sample_offset: got ",
        sample_offset, " for ", samples, " samples, want indices in [0, 2**40)");
  Stream stream{static_cast<uint64_t>(seed), image_offset, sample_offset, nullptr};
  if (sample_offset_tensor) {
    const Tensor& t = *sample_offset_tensor;
    check(t.dim() == 0 && t.scalar_type() == ScalarType::Long, "sample_offset: got ",
          name_of(t.scalar_type()), " of shape ", shape_of(t), ", want a 0-d int64 tensor");
    check_same_device("sample_offset", t, x, "x");
    stream.sample_offset_ptr = t.const_data_ptr<int64_t>();
  }
  return stream;
}

int64_t elements_of(const Tensor& t, int64_t first_dim) {
  int64_t n = 1;
  for (int64_t d = first_dim; d < t.dim(); ++d) n *= t.size(d);
  return n;
}

void launch(const NoiseArgs& args, const Tensor& on) {
  if (args.images * args.samples * args.elements == 0) return;
  if (on.is_cuda()) {
    on_cuda(on, [&](void* stream) { noise_cuda(args, stream); });
  } else {
    noise_cpu(args);
  }
}

// Everything about the arguments but the output.
NoiseArgs noise_args(const Tensor& x,  // [B, *D]
                     int64_t num_samples, double sigma,
                     const OptionalTensor& sigma_map,  // broadcasts to [B, *D]
                     const OptionalTensor& mean, const OptionalTensor& std,  // broadcast to [B, *D]
                     int64_t seed, int64_t image_offset, int64_t sample_offset,
                     const OptionalTensor& sample_offset_tensor) {
  check(x.dim() >= 1, "x: got a 0-d tensor, want [B, *D]");
  check(num_samples >= 0, "num_samples: got ", num_samples, ", want at least 0");
  check(sigma_map || (std::isfinite(sigma) && sigma >= 0), "sigma: got ", sigma,
        ", want a finite number, at least 0");
  NoiseArgs args{};
  args.images = x.size(0);
  args.samples = num_samples;
  args.elements = elements_of(x, 1);
  args.stream = make_stream(x, args.images, args.samples, args.elements, seed, image_offset,
                            sample_offset, sample_offset_tensor);
  const auto view = [&](const char* name, const OptionalTensor& t) {
    if (!t) return StridedView{};
    check_same_device(name, *t, x, "x");
    return strided_view(name, *t, x.sizes());
  };
  args.x = view("x", x);
  args.sigma = view("sigma", sigma_map);
  args.mean = view("mean", mean);
  args.std = view("std", std);
  args.sigma_value = sigma;
  return args;
}

// Sizes and strides of the output: [B, S, *D], logical order or channels last.
struct OutputLayout {
  std::vector<int64_t> sizes, strides;
};

OutputLayout output_layout(const Tensor& x, int64_t num_samples, bool channels_last) {
  check(!channels_last || x.dim() == 4, "memory_format: channels_last wants x [B, C, H, W], got ",
        shape_of(x));
  OutputLayout out;
  out.sizes = {x.size(0), num_samples};
  for (int64_t d = 1; d < x.dim(); ++d) out.sizes.push_back(x.size(d));
  const int64_t n = static_cast<int64_t>(out.sizes.size());
  out.strides.assign(n, 1);
  auto lay = [&, stride = int64_t{1}](int64_t d) mutable {
    out.strides[d] = stride;
    stride *= out.sizes[d] > 0 ? out.sizes[d] : 1;
  };
  if (channels_last) {
    for (const int64_t d : {2, 4, 3, 1, 0}) lay(d);
  } else {
    for (int64_t d = n - 1; d >= 0; --d) lay(d);
  }
  return out;
}

int64_t channels_of(const Tensor& x, bool channels_last) {
  // One channel or one pixel: both orders are the same.
  return channels_last && x.size(2) * x.size(3) > 1 ? x.size(1) : 1;
}

void gaussian_noise_out(const Tensor& x, int64_t num_samples, double sigma,
                        const OptionalTensor& sigma_map, const OptionalTensor& mean,
                        const OptionalTensor& std, int64_t seed, int64_t image_offset,
                        int64_t sample_offset, const OptionalTensor& sample_offset_tensor,
                        bool channels_last, Tensor out) {
  NoiseArgs args = noise_args(x, num_samples, sigma, sigma_map, mean, std, seed, image_offset,
                              sample_offset, sample_offset_tensor);
  const OutputLayout layout = output_layout(x, num_samples, channels_last);
  check_same_device("out", out, x, "x");
  bool same = out.dim() == static_cast<int64_t>(layout.sizes.size());
  for (int64_t d = 0; same && d < out.dim(); ++d) {
    same = out.size(d) == layout.sizes[d] &&
           (out.size(d) == 1 || out.numel() == 0 || out.stride(d) == layout.strides[d]);
  }
  if (!same) {
    std::ostringstream want;
    for (size_t d = 0; d < layout.sizes.size(); ++d) want << (d ? ", " : "") << layout.sizes[d];
    fail("out: got shape ", shape_of(out), ", want [", want.str(), "] in ",
         channels_last ? "channels_last" : "contiguous", " layout");
  }
  args.out = out.mutable_data_ptr();
  args.out_dtype = floating_dtype("out", out.scalar_type());
  args.channels = channels_of(x, channels_last);
  launch(args, x);
}

Tensor gaussian_noise(const Tensor& x, int64_t num_samples, double sigma,
                      const OptionalTensor& sigma_map, const OptionalTensor& mean,
                      const OptionalTensor& std, int64_t seed, int64_t image_offset,
                      int64_t sample_offset, const OptionalTensor& sample_offset_tensor,
                      ScalarType dtype, bool channels_last) {
  NoiseArgs args = noise_args(x, num_samples, sigma, sigma_map, mean, std, seed, image_offset,
                              sample_offset, sample_offset_tensor);
  args.out_dtype = floating_dtype("dtype", dtype);
  const OutputLayout layout = output_layout(x, num_samples, channels_last);
  args.channels = channels_of(x, channels_last);
  Tensor out = empty_on(x, layout.sizes, layout.strides, dtype);
  args.out = out.mutable_data_ptr();
  launch(args, x);
  return out;
}

std::tuple<Tensor, Tensor> gaussian_noise_sums(const Tensor& grad,  // [B, S, *D]
                                               int64_t seed, int64_t image_offset,
                                               int64_t sample_offset,
                                               const OptionalTensor& sample_offset_tensor,
                                               bool with_noise) {
  check(grad.dim() >= 2, "grad: got shape ", shape_of(grad), ", want [B, S, *D]");
  SumsArgs args{};
  args.images = grad.size(0);
  args.samples = grad.size(1);
  args.elements = elements_of(grad, 2);
  args.stream = make_stream(grad, args.images, args.samples, args.elements, seed, image_offset,
                            sample_offset, sample_offset_tensor);
  args.grad = strided_view("grad", grad, grad.sizes(), /*has_samples=*/true);
  std::vector<int64_t> sizes{grad.size(0)};
  for (int64_t d = 2; d < grad.dim(); ++d) sizes.push_back(grad.size(d));
  const auto dtype = args.grad.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
  Tensor sum = torch::stable::new_zeros(grad, sizes, dtype);
  if (!with_noise) sizes = {0};
  Tensor noise_sum = torch::stable::new_zeros(grad, sizes, dtype);
  args.sum = sum.mutable_data_ptr();
  args.noise_sum = with_noise ? noise_sum.mutable_data_ptr() : nullptr;
  if (args.images * args.samples * args.elements > 0) {
    if (grad.is_cuda()) {
      on_cuda(grad, [&](void* stream) { sums_cuda(args, stream); });
    } else {
      sums_cpu(args);
    }
  }
  return {sum, noise_sum};
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
  if (logits.is_cuda()) {
    on_cuda(logits, [&](void* stream) { votes_cuda(args, stream); });
  } else {
    votes_cpu(args);
  }
}

Tensor count_votes(const Tensor& logits) {
  check(logits.dim() == 3, "logits: got shape ", shape_of(logits), ", want [B, S, K]");
  const int64_t images = logits.size(0), classes = logits.size(2);
  Tensor counts = empty_on(logits, {images, classes}, {classes, 1}, ScalarType::Long);
  count_votes_out(logits, counts);
  return counts;
}

}  // namespace

#define RC_NOISE_ARGUMENTS                                                                    \
  "Tensor x, SymInt num_samples, float sigma, Tensor? sigma_map, Tensor? mean, Tensor? std, " \
  "SymInt seed, SymInt image_offset, SymInt sample_offset, Tensor? sample_offset_tensor, "

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("gaussian_noise(" RC_NOISE_ARGUMENTS "ScalarType dtype, bool channels_last) -> Tensor");
  m.def("gaussian_noise_out(" RC_NOISE_ARGUMENTS "bool channels_last, Tensor(a!) out) -> ()");
  m.def(
      "gaussian_noise_sums(Tensor grad, SymInt seed, SymInt image_offset, SymInt sample_offset, "
      "Tensor? sample_offset_tensor, bool with_noise) -> (Tensor, Tensor)");
  m.def("count_votes(Tensor logits) -> Tensor");
  m.def("count_votes_out(Tensor logits, Tensor(a!) out) -> ()");
}

template <class Library>
void implement(Library& m) {
  m.impl("gaussian_noise", TORCH_BOX(&gaussian_noise));
  m.impl("gaussian_noise_out", TORCH_BOX(&gaussian_noise_out));
  m.impl("gaussian_noise_sums", TORCH_BOX(&gaussian_noise_sums));
  m.impl("count_votes", TORCH_BOX(&count_votes));
  m.impl("count_votes_out", TORCH_BOX(&count_votes_out));
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  implement(m);
}
STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  implement(m);
}

}  // namespace robustcore::smoothing
