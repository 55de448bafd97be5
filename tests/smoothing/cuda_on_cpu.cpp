// Executes the smoothing kernels through the shim and compares them with the CPU
// kernels, bit for bit. Prints one line a case; the exit status is the number of cases that differ
// (at most 99).
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cases.h"
#include "smoothing/ablation.h"
#include "smoothing/mean_softmax.h"
#include "smoothing/noise.h"
#include "smoothing/pixel_votes.h"
#include "smoothing/votes.h"

using namespace robustcore;
using namespace robustcore::smoothing;

namespace {

// Offsets that the kernels read themselves, past 32 bits.
const int64_t image_offset = (int64_t{1} << 41) + 11, sample_offset = (int64_t{1} << 34) + 5;

// Values in (-2, 2) that exercise rounding, the same in every run.
std::vector<float> values(size_t n, uint64_t seed) {
  std::vector<float> v(n);
  for (size_t i = 0; i < n; ++i) {
    const uint32_t counter[4] = {static_cast<uint32_t>(i), 0, 0, 0};
    uint32_t out[4];
    philox4x32(counter, seed, out);
    v[i] = static_cast<float>(static_cast<int32_t>(out[0])) * 0x1p-30f;
  }
  return v;
}

StridedView view(const float* data, int64_t image_stride, std::vector<int64_t> sizes,
                 std::vector<int64_t> strides) {
  StridedView v{};
  v.data = data;
  v.dtype = DType::kFloat32;
  v.image_stride = image_stride;
  v.dims = static_cast<int32_t>(sizes.size());
  for (size_t d = 0; d < sizes.size(); ++d) v.sizes[d] = sizes[d], v.strides[d] = strides[d];
  return v;
}

void check_noise(NoiseArgs args, const std::string& name) {
  const size_t bytes = args.images * args.samples * args.elements * size_of(args.out_dtype);
  // 16-aligned like torch's storage; different poison on both sides shows what nobody wrote.
  std::vector<double> cpu(bytes / 8 + 1), gpu(bytes / 8 + 1);
  std::memset(cpu.data(), 0xCD, bytes);
  std::memset(gpu.data(), 0xAB, bytes);
  args.out = cpu.data();
  noise_baseline(args, 0, noise_tiling(args).units());
  args.out = gpu.data();
  noise_cuda(args, nullptr);
  report(name, std::memcmp(cpu.data(), gpu.data(), bytes) == 0);
}

void noise_cases() {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
    struct Shape {
      int64_t images, samples, channels, pixels;
    };
    for (const Shape s :
         {Shape{1, 1, 1, 1}, Shape{2, 3, 1, 7}, Shape{3, 40, 1, 64}, Shape{1, 5, 1, 1100},
          Shape{2, 300, 1, 4}, Shape{2, 9, 3, 16}, Shape{2, 3, 3, 9}, Shape{1, 2, 5, 12},
          Shape{1, 3, 3, 1032}, Shape{1, 33, 1, 520}, Shape{2, 67, 3, 44}}) {
      const int64_t d = s.channels * s.pixels;
      const auto x = values(s.images * d * 2, 1), sigma = values(d, 2),
                 mean = values(s.channels, 3);
      auto std = values(s.channels, 4);
      for (float& v : std) v = v * v + 0.25f;
      NoiseArgs args{};
      args.images = s.images, args.samples = s.samples, args.elements = d;
      args.stream = {0x0123456789ABCDEFull, (int64_t{1} << 32) + 3, (int64_t{1} << 33) + 9,
                     &image_offset, &sample_offset};
      args.x = view(x.data(), 2 * d, {d}, {2});
      args.sigma_value = 0.7;
      args.out_dtype = dtype;
      const std::string name = "noise dtype " + std::to_string(static_cast<int>(dtype)) +
                               " shape " + std::to_string(s.images) + "x" +
                               std::to_string(s.samples) + "x" + std::to_string(s.channels) + "x" +
                               std::to_string(s.pixels);
      args.channels = 1;
      for (const auto distribution : {Distribution::kGaussian, Distribution::kUniform,
                                      Distribution::kLaplace, Distribution::kSplitting}) {
        args.distribution = distribution;
        check_noise(args, name + " of " + std::to_string(static_cast<int>(distribution)));
      }
      args.levels = 441;
      check_noise(args, name + " in turn");
      args.levels = 0, args.distribution = Distribution::kGaussian;
      args.sigma = view(sigma.data(), 0, {s.channels, s.pixels}, {s.pixels, 1});
      args.mean = view(mean.data(), 0, {s.channels, s.pixels}, {1, 0});
      args.std = view(std.data(), 0, {s.channels, s.pixels}, {1, 0});
      check_noise(args, name + " maps");
      if (s.pixels > 1) {
        args.channels = s.channels;
        check_noise(args, name + " channels last");
      }
    }
  }
}

// Thresholds of a normal rounded to integers, as many bits as a double has.
std::vector<int32_t> thresholds(double spread) {
  std::vector<int32_t> words;
  for (int k = 0; k < 11 * spread; ++k) {
    const double p = std::erf((k + 0.5) / (spread * std::sqrt(2.0))) * 0x1p31;
    const double rest = (p - std::floor(p)) * 0x1p32;
    words.push_back(static_cast<int32_t>(static_cast<uint32_t>(p)));
    words.push_back(static_cast<int32_t>(static_cast<uint32_t>(rest)));
    words.push_back(0);
  }
  return words;
}

void lattice_cases() {
  for (const auto distribution : {Distribution::kLatticeGaussian, Distribution::kLatticeUniform,
                                  Distribution::kLatticeLaplace}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16}) {
      for (const double spread : {0.3, 64.0, 3000.0}) {
        const int64_t channels = 3, pixels = 12, d = channels * pixels;
        const auto x = values(2 * d, 1);
        const auto table = thresholds(spread);
        NoiseArgs args{};
        args.distribution = distribution;
        args.images = 2, args.samples = 40, args.elements = d, args.channels = 1;
        args.stream = {77, 1, 2, &image_offset, &sample_offset};
        args.x = view(x.data(), d, {d}, {1});
        args.lattice = {table.data(), static_cast<int64_t>(table.size() / 3),
                        static_cast<float>(spread), 255, 2};
        args.out_dtype = dtype;
        const std::string name = "lattice " + std::to_string(static_cast<int>(distribution)) +
                                 " dtype " + std::to_string(static_cast<int>(dtype)) + " spread " +
                                 std::to_string(spread);
        check_noise(args, name);
        args.channels = channels;
        check_noise(args, name + " channels last");
      }
    }
  }
}

template <class T>
void sums_case(int64_t images, int64_t samples, int64_t elements, bool with_noise) {
  const auto grad = values(images * samples * elements, 5);
  const std::vector<T> typed(grad.begin(), grad.end());
  SumsArgs args{};
  args.images = images, args.samples = samples, args.elements = elements;
  args.stream = {77, 1, 2, &image_offset, &sample_offset};
  args.grad = view(nullptr, samples * elements, {elements}, {1});
  args.grad.data = typed.data();
  args.grad.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  args.grad.sample_stride = elements;
  std::vector<T> out[4];
  for (auto& o : out) o.assign(images * elements, T(-1));
  args.sum = out[0].data(), args.noise_sum = with_noise ? out[1].data() : nullptr;
  sums_baseline(args, 0, sums_units(args));
  args.sum = out[2].data(), args.noise_sum = with_noise ? out[3].data() : nullptr;
  sums_cuda(args, nullptr);
  const size_t bytes = images * elements * sizeof(T);
  report("sums " + std::to_string(samples) + "x" + std::to_string(elements),
         std::memcmp(out[0].data(), out[2].data(), bytes) == 0 &&
             std::memcmp(out[1].data(), out[3].data(), bytes) == 0);
}

void votes_case(int64_t images, int64_t samples, int64_t classes) {
  auto logits = values(images * samples * classes, 6);
  for (float& v : logits) v = std::round(v * 2);  // many ties
  if (samples > 3) {
    logits[0] = NAN;
    for (int64_t k = 0; k < classes; ++k) logits[classes + k] = -INFINITY;
    logits[3 * classes - 1] = INFINITY;
  }
  VotesArgs args{};
  args.images = images, args.samples = samples, args.classes = classes;
  args.logits = view(logits.data(), samples * classes, {classes}, {1});
  args.logits.sample_stride = classes;
  std::vector<int64_t> cpu(images * classes, 0), gpu(images * classes, -1);
  args.counts = cpu.data();
  votes_baseline(args, 0, votes_units(args));
  args.counts = gpu.data();
  votes_cuda(args, nullptr);
  report("votes " + std::to_string(images) + "x" + std::to_string(samples) + "x" +
             std::to_string(classes),
         cpu == gpu);
}

void pixel_votes_case(int64_t samples, int64_t classes, int64_t pixels, bool channels_last) {
  auto logits = values(samples * classes * pixels, 11);
  for (float& v : logits) v = std::round(v * 2);  // many ties
  logits[logits.size() / 2] = NAN;
  std::vector<int64_t> chosen(pixels);
  for (int64_t p = 0; p < pixels; ++p) chosen[p] = p % (classes + 1) - 1;
  PixelVotesArgs args{};
  args.samples = samples, args.classes = classes, args.pixels = pixels;
  args.logits = view(logits.data(), classes * pixels, {pixels}, {channels_last ? classes : 1});
  args.logits.sample_stride = channels_last ? 1 : pixels;
  for (const bool choose : {false, true}) {
    args.chosen = choose ? chosen.data() : nullptr;
    std::vector<int32_t> cpu((choose ? 1 : classes) * pixels, 3), gpu(cpu);
    args.counts = cpu.data();
    pixel_votes_baseline(args, 0, pixel_votes_units(args));
    args.counts = gpu.data();
    pixel_votes_cuda(args, nullptr);
    report("pixel votes " + std::to_string(samples) + "x" + std::to_string(classes) + "x" +
               std::to_string(pixels) + (choose ? " of the chosen" : ""),
           cpu == gpu);
  }
}

void check_select(SelectArgs args, const std::string& name) {
  const size_t bytes =
      args.images * args.samples * args.channels * args.pixels * size_of(args.out_dtype);
  std::vector<double> cpu(bytes / 8 + 1), gpu(bytes / 8 + 1);
  std::memset(cpu.data(), 0xCD, bytes);
  std::memset(gpu.data(), 0xAB, bytes);
  args.out = cpu.data();
  select_baseline(args, 0, select_tiling(args).units());
  args.out = gpu.data();
  select_cuda(args, nullptr);
  report(name, std::memcmp(cpu.data(), gpu.data(), bytes) == 0);
}

void ablation_case(int64_t images, int64_t samples, int64_t channels, int64_t pixels,
                   int64_t kept) {
  const std::string name = "ablation " + std::to_string(samples) + "x" + std::to_string(channels) +
                           "x" + std::to_string(pixels) + " keeps " + std::to_string(kept);
  const size_t words = images * samples * mask_words(pixels);
  std::vector<uint32_t> cpu(words, 1), gpu(words, 2);
  PixelMaskArgs masks{
      images,    samples, pixels, kept, {7, int64_t{1} << 33, 5, &image_offset, &sample_offset},
      cpu.data()};
  pixel_masks_baseline(masks, 0, images * samples);
  masks.masks = gpu.data();
  pixel_masks_cuda(masks, nullptr);
  report(name + " masks", cpu == gpu);

  const auto x = values(images * channels * pixels, 8), fill = values(channels, 9);
  SelectArgs args{};
  args.images = images, args.samples = samples, args.channels = channels, args.pixels = pixels;
  args.values = view(x.data(), channels * pixels, {channels * pixels}, {1});
  args.masks = cpu.data(), args.mask_images = images;
  for (const DType dtype : {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16}) {
    args.out_dtype = dtype;
    for (const bool channels_last : {false, true}) {
      args.channels_last = channels_last;
      args.fill = view(fill.data(), 0, {channels, pixels}, {1, 0});
      check_select(args, name + " fill dtype " + std::to_string(static_cast<int>(dtype)));
      args.fill = StridedView{};
      check_select(args, name + " zero dtype " + std::to_string(static_cast<int>(dtype)));
    }
  }

  const auto grad = values(images * samples * channels * pixels, 10);
  KeptSumsArgs sums{};
  sums.images = images, sums.samples = samples, sums.channels = channels, sums.pixels = pixels;
  sums.grad = view(grad.data(), samples * channels * pixels, {channels * pixels}, {1});
  sums.grad.sample_stride = channels * pixels;
  sums.masks = cpu.data(), sums.mask_images = images;
  std::vector<float> a(images * channels * pixels, -1), b(a.size(), -2);
  sums.sum = a.data();
  kept_sums_baseline(sums, 0, kept_sums_units(sums));
  sums.sum = b.data();
  kept_sums_cuda(sums, nullptr);
  report(name + " sums", std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void patches_case(int64_t height, int64_t width, int64_t patch, int64_t stride) {
  const int64_t columns = ceil_div(width, stride), samples = columns * ceil_div(height, stride);
  std::vector<uint32_t> cpu(samples * mask_words(height * width), 1), gpu(cpu.size(), 2);
  PatchMaskArgs args{samples, 0, height, width, patch, patch, stride, stride, columns, cpu.data()};
  patch_masks_baseline(args, 0, samples);
  args.masks = gpu.data();
  patch_masks_cuda(args, nullptr);
  report("patches " + std::to_string(height) + "x" + std::to_string(width), cpu == gpu);
}

// `gap` sets copies apart: at 200 the means of most classes are too small for float32.
template <class T>
void mean_softmax_case(int64_t images, int64_t copies, int64_t classes, float gap) {
  using A = Arithmetic<T>;
  const int64_t means = images * classes, all = means * copies;
  auto logits = random_values<T>(2 * all, 1);
  for (int64_t row = 0; row < images * copies; ++row) {
    T& z = logits[2 * (row * classes + row % classes)];
    z = convert<T>(convert<float>(z) + gap);
  }
  const auto first = random_values<A>(means, 2), second = random_values<A>(means, 3),
             v = random_values<A>(all, 4);
  std::vector<A> scratch(classes * copies);
  std::vector<A> results[2];
  for (int side = 0; side < 2; ++side) {
    std::vector<A>& out = results[side];
    out.assign(4 * means + 2 * all + 5 * images * copies, A(7));
    MeanSoftmaxDoubleBackwardArgs twice{};
    MeanSoftmaxBackwardArgs& back = twice.backward;
    MeanSoftmaxArgs& args = back.forward;
    args.images = images, args.copies = copies, args.classes = classes, args.scale = 1.25;
    args.logits.data = logits.data(), args.logits.dtype = kType<T>, args.logits.dims = 1;
    args.logits.image_stride = 2 * copies * classes, args.logits.sample_stride = 2 * classes;
    args.logits.sizes[0] = classes, args.logits.strides[0] = 2;
    args.log_mean = out.data(), args.mean_log = out.data() + means;
    twice.second_log_mean = out.data() + 2 * means, twice.second_mean_log = out.data() + 3 * means;
    back.grad = out.data() + 4 * means, twice.second = out.data() + 4 * means + all;
    args.rows = out.data() + 4 * means + 2 * all;
    twice.sums = static_cast<A*>(args.rows) + 3 * images * copies;
    back.grad_log_mean = first.data(), back.grad_mean_log = second.data(), twice.v = v.data();
    float* const memory = reinterpret_cast<float*>(scratch.data());
    side ? mean_softmax_cuda(args, nullptr) : mean_softmax_baseline(args, memory, 0, images);
    side ? mean_softmax_backward_cuda(back, nullptr)
         : mean_softmax_backward_baseline(back, memory, 0, images);
    side ? mean_softmax_double_backward_cuda(twice, nullptr)
         : mean_softmax_double_backward_baseline(twice, 0, images);
  }
  report("mean_softmax dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
             std::to_string(images) + "x" + std::to_string(copies) + "x" + std::to_string(classes) +
             " gap " + std::to_string(gap),
         results[0] == results[1]);
}

}  // namespace

int main() {
  ablation_case(2, 3, 2, 35, 4);
  ablation_case(1, 70, 3, 64, 60);
  ablation_case(1, 2, 1, 1100, 500);
  ablation_case(1, 2, 1, 66000, 300);  // past what shared memory holds
  ablation_case(2, 3, 1, 1, 0);
  patches_case(9, 11, 4, 3);
  patches_case(40, 33, 33, 7);
  noise_cases();
  lattice_cases();
  for (const bool with_noise : {true, false}) {
    sums_case<float>(2, 1, 1, with_noise);
    sums_case<float>(2, 70, 135, with_noise);
    sums_case<double>(1, 300, 10, with_noise);
  }
  for (const int64_t classes : {1, 10, 16, 17, 40, 5000}) votes_case(2, 70, classes);
  votes_case(2, 600, 3);
  for (const bool channels_last : {false, true}) {
    pixel_votes_case(3, 5, 700, channels_last);
    pixel_votes_case(1, 1, 1, channels_last);
    pixel_votes_case(4, 19, 35, channels_last);
  }
  for (const float gap : {0.0f, 200.0f}) {
    mean_softmax_case<float>(3, 2, 1, gap);
    mean_softmax_case<float>(2, 9, 33, gap);
    mean_softmax_case<Half>(2, 3, 10, gap);
    mean_softmax_case<BFloat16>(1, 2, 1100, gap);
    mean_softmax_case<double>(2, 3, 7, gap);
  }
  return finish();
}
