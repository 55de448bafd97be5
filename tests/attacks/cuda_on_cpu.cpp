// Executes the attacks kernels through the shim and compares them with the CPU kernels, bit for
// bit. Prints one line a case; the exit status is the number of cases that differ (at most 99).
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "attacks/apgd.h"
#include "attacks/hyperplane.h"
#include "attacks/loss.h"
#include "attacks/perceptual.h"
#include "attacks/square.h"
#include "attacks/start.h"
#include "attacks/step.h"
#include "attacks/warp.h"
#include "attacks/watch.h"
#include "cases.h"

using namespace robustcore;
using namespace robustcore::attacks;

namespace {

// Rows of [channels, pixels], every `stride`-th element of which counts.
template <class T>
StridedView rows_of(const std::vector<T>& data, int64_t elements, int64_t stride) {
  StridedView view{};
  view.data = data.data();
  view.dtype = kType<T>;
  view.dims = 1;
  view.image_stride = elements * stride;
  view.sizes[0] = elements, view.strides[0] = stride;
  return view;
}

// Values in [0, 1).
template <class T>
std::vector<T> pixels_of(size_t n, uint32_t seed) {
  std::vector<T> v = random_values<T>(n, seed);
  for (T& x : v) x = convert<T>(to_float(x) / 16.0f + 0.5f);
  return v;
}

// Both sides start from different poison, which shows what nobody wrote.
template <class T>
struct Sides {
  std::vector<T> cpu, gpu;
  explicit Sides(size_t n) : cpu(n), gpu(n) {
    std::memset(static_cast<void*>(cpu.data()), 0xCD, n * sizeof(T));
    std::memset(static_cast<void*>(gpu.data()), 0xAB, n * sizeof(T));
  }
  bool agree() const {
    return std::memcmp(cpu.data(), gpu.data(), cpu.size() * sizeof(T)) == 0;
  }
};

template <class T>
std::string label(const char* op, int64_t rows, int64_t elements) {
  return std::string(op) + " dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
         std::to_string(rows) + "x" + std::to_string(elements);
}

template <class T>
void step_case(Norm norm, int64_t rows, int64_t channels, int64_t pixels, int kind) {
  const int64_t elements = channels * pixels;
  const auto x = pixels_of<T>(rows * elements * 2, 1), x0 = pixels_of<T>(rows * elements * 2, 2);
  const auto previous = pixels_of<T>(rows * elements * 2, 3);
  const auto grad = random_values<T>(rows * elements * 2, 4);
  const auto eps = pixels_of<Arithmetic<T>>(rows, 5);
  StepArgs args{};
  args.rows = rows, args.elements = elements, args.channels = channels;
  args.norm = norm, args.exact = kind == 0;
  args.x = rows_of(x, elements, 2), args.x0 = rows_of(x0, elements, 2);
  if (kind > 0) args.grad = rows_of(grad, elements, 2);
  if (kind > 1) args.previous = rows_of(previous, elements, 2);
  args.eps = {{nullptr, 0}, norm == Norm::kL0 ? 5.0 : norm == Norm::kL1 ? 3.0 : 0.25};
  if (norm == Norm::kL2) args.eps.values = {eps.data(), 1};
  args.step_size.value = 0.125, args.topk.value = 0.1, args.momentum.value = 0.75;
  args.high = 1;
  Sides<T> out(rows * elements);
  args.place = rows_of(out.cpu, elements, 1);
  args.out = out.cpu.data();
  std::vector<double> scratch(scratch_elements(args));
  step_baseline(args, reinterpret_cast<float*>(scratch.data()), 0, rows);
  args.out = out.gpu.data();
  step_cuda(args, nullptr);
  report(label<T>("step", rows, elements) + " norm " + std::to_string(static_cast<int>(norm)) +
             " kind " + std::to_string(kind),
         out.agree());
}

template <class T>
void hyperplane_case(Norm norm, int64_t rows, int64_t elements) {
  const auto x = pixels_of<T>(rows * elements, 1), w = random_values<T>(rows * elements, 2);
  const auto offset = random_values<Arithmetic<T>>(rows, 3);
  HyperplaneArgs args{};
  args.rows = rows, args.elements = elements;
  args.norm = norm;
  args.x = rows_of(x, elements, 1), args.w = rows_of(w, elements, 1);
  args.offset.values = {offset.data(), 1};
  args.high = 1;
  Sides<T> out(rows * elements);
  args.place = rows_of(out.cpu, elements, 1);
  args.out = out.cpu.data();
  std::vector<double> scratch(2 * elements);
  hyperplane_baseline(args, reinterpret_cast<float*>(scratch.data()), 0, rows);
  args.out = out.gpu.data();
  hyperplane_cuda(args, nullptr);
  report(label<T>("hyperplane", rows, elements) + " norm " + std::to_string(static_cast<int>(norm)),
         out.agree());
}

template <class T>
void loss_case(Loss loss, bool targeted, int64_t rows, int64_t classes) {
  const auto logits = random_values<T>(rows * classes, 1);
  std::vector<int64_t> labels(rows), targets(rows);
  for (int64_t i = 0; i < rows; ++i) labels[i] = i % classes, targets[i] = (i + 1) % classes;
  LossArgs args{};
  args.rows = rows, args.classes = classes, args.loss = loss, args.rounding = 1e-6;
  args.logits = rows_of(logits, classes, 1);
  args.labels = labels.data(), args.targets = targeted ? targets.data() : nullptr;
  Sides<T> slope(rows * classes);
  Sides<Arithmetic<T>> value(rows), ahead(rows);
  args.place = rows_of(slope.cpu, classes, 1);
  args.slope = slope.cpu.data(), args.value = value.cpu.data(), args.ahead = ahead.cpu.data();
  std::vector<double> scratch(2 * classes);
  attack_loss_baseline(args, reinterpret_cast<float*>(scratch.data()), 0, rows);
  args.slope = slope.gpu.data(), args.value = value.gpu.data(), args.ahead = ahead.gpu.data();
  attack_loss_cuda(args, nullptr);
  report(label<T>("loss", rows, classes) + " kind " + std::to_string(static_cast<int>(loss)) +
             (targeted ? " targeted" : ""),
         slope.agree() && value.agree() && ahead.agree());
}

const std::vector<int64_t> kImages{3, 1, 1 << 20}, kSamples{0, 7, 2}, kQueries{0, 5, 999};

template <class T>
void start_case(int64_t elements, bool normal) {
  StartArgs args{};
  args.rows = 3, args.elements = elements;
  args.images = kImages.data(), args.samples = kSamples.data();
  args.seed = 11, args.normal = normal;
  args.dtype = kType<T>;
  Sides<T> out(3 * elements);
  args.out = out.cpu.data();
  start_noise_baseline(args, 0, 3);
  args.out = out.gpu.data();
  start_noise_cuda(args, nullptr);
  report(label<T>(normal ? "start normal" : "start uniform", 3, elements), out.agree());
}

template <class T>
void square_case(Norm norm, int64_t channels, int64_t height, int64_t width, bool start) {
  SquareArgs args{};
  std::vector<double> rings(std::min(height, width) + 2);
  for (size_t i = 1; i < rings.size(); ++i) {
    rings[i] = rings[i - 1] + 1 / (static_cast<double>(i) * static_cast<double>(i));
  }
  args.norm = norm, args.rings = rings.data();
  args.rows = 3, args.channels = channels, args.height = height, args.width = width;
  const int64_t elements = args.elements();
  const auto x0 = pixels_of<T>(3 * elements, 1), best = pixels_of<T>(3 * elements, 2);
  const std::vector<Arithmetic<T>> share{Arithmetic<T>(0.8), Arithmetic<T>(0.2), Arithmetic<T>(0)};
  args.x0 = rows_of(x0, elements, 1);
  args.images = kImages.data(), args.variants = kSamples.data();
  if (!start) {
    args.best = rows_of(best, elements, 1);
    args.queries = kQueries.data();
    args.share.values = {share.data(), 1};
  }
  args.eps.value = 0.1;
  args.high = 1, args.seed = 5;
  Sides<T> out(3 * elements);
  args.place = rows_of(out.cpu, elements, 1);
  args.out = out.cpu.data();
  square_baseline(args, 0, 3);
  args.out = out.gpu.data();
  square_cuda(args, nullptr);
  report(label<T>(start ? "square start" : "square", 3, elements) + " norm " +
             std::to_string(static_cast<int>(norm)),
         out.agree());
}

// Rows that are a new best, that go back, both, and that stay; some found, some with a gradient
// that is zero or no number.
template <class T>
struct ApgdSide {
  using A = Arithmetic<T>;
  static constexpr int64_t kRows = 6;
  int64_t elements;
  std::vector<T> x = pixels_of<T>(kRows * elements, 1), previous = pixels_of<T>(x.size(), 2);
  std::vector<T> best = pixels_of<T>(x.size(), 3), best_grad = random_values<T>(x.size(), 4);
  std::vector<A> loss{3, 1, 1, 2, 0, 5}, best_loss{2, 2, 0, 2, 2, 2}, last{1, 1, 2, 1, 1, 1};
  std::vector<A> size{A(.1), A(.2), A(.1), A(.2), A(.1), A(.2)}, rises{1, 1, 1, 1, 1, 1};
  std::vector<A> checked{1, 1, 9, 1, 1, 9};
  std::vector<int64_t> age{0, 0, 2, 1, 1, 7};
  bool flags[6][kRows] = {{false, false, false, false, false, true}, {}, {}, {}, {},
                          {false, true, false, true, true, false}};

  ApgdArgs args(const std::vector<T>& grad, const std::vector<T>& x0, const A* ahead,
                const std::vector<int64_t>& widths, Norm norm) {
    ApgdArgs args{};
    WatchArgs& watch = args.watch;
    watch.rows = kRows, watch.elements = elements, watch.element_size = sizeof(T);
    watch.is_double = sizeof(T) == sizeof(double);
    watch.x = x.data(), watch.grad = rows_of(grad, elements, 1);
    watch.best = best.data(), watch.best_grad = best_grad.data();
    watch.loss = loss.data(), watch.ahead = ahead, watch.best_loss = best_loss.data();
    watch.found = flags[0], watch.fooled = flags[1], watch.zero = flags[2];
    watch.nan_grad = flags[3], watch.nan_logits = flags[4], watch.age = age.data();
    StepArgs& to = args.step;
    to.rows = kRows, to.elements = elements, to.channels = 1, to.norm = norm;
    to.x = rows_of(x, elements, 1), to.x0 = rows_of(x0, elements, 1), to.grad = watch.grad;
    to.previous = to.place = rows_of(previous, elements, 1), to.out = previous.data();
    to.eps.value = 0.3, to.high = 1;
    args.x = x.data(), args.last_loss = last.data(), args.rises = rises.data();
    args.step_size = size.data(), args.checked = checked.data(), args.cut = flags[5];
    args.widths = widths.data(), args.ages = static_cast<int64_t>(widths.size());
    args.rho = 0.75, args.momentum = 0.75;
    return args;
  }
  bool agrees(const ApgdSide& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(x, other.x) && same(previous, other.previous) && same(best, other.best) &&
           same(best_grad, other.best_grad) && same(loss, other.loss) && same(age, other.age) &&
           same(best_loss, other.best_loss) && same(last, other.last) && same(size, other.size) &&
           same(rises, other.rises) && same(checked, other.checked) &&
           std::memcmp(flags, other.flags, sizeof(flags)) == 0;
  }
};

template <class T>
void apgd_case(int64_t elements, Norm norm) {
  using A = Arithmetic<T>;
  const A ahead[ApgdSide<T>::kRows] = {-1, -1, A(NAN), 2, -3, -4};
  const std::vector<int64_t> widths{0, 0, 4, 2};
  const auto x0 = pixels_of<T>(ApgdSide<T>::kRows * elements, 5);
  auto grad = random_values<T>(ApgdSide<T>::kRows * elements, 6);
  for (int64_t k = 0; k < elements; ++k) grad[elements + k] = convert<T>(0.0f);
  grad[4 * elements + elements / 2] = convert<T>(INFINITY);
  ApgdSide<T> cpu{elements}, gpu{elements};
  const auto args = cpu.args(grad, x0, ahead, widths, norm);
  std::vector<double> scratch(scratch_elements(args.step));
  apgd_step_baseline(args, reinterpret_cast<float*>(scratch.data()), 0, ApgdSide<T>::kRows);
  apgd_step_cuda(gpu.args(grad, x0, ahead, widths, norm), nullptr);
  report(label<T>("apgd", ApgdSide<T>::kRows, elements) + " norm " +
             std::to_string(static_cast<int>(norm)),
         cpu.agrees(gpu));
}

// Rows that are found now, later or not, of a higher loss, with gradients that are zero or NaN.
template <class T>
void watch_case(int64_t elements, bool keeps) {
  using A = Arithmetic<T>;
  constexpr int64_t rows = 6;
  const std::vector<A> ahead{1, -1, A(NAN), 2, -3, 4};
  const auto x = pixels_of<T>(rows * elements, 1);
  auto grad = pixels_of<T>(rows * elements, 2);
  for (int64_t k = 0; k < elements; ++k) grad[elements + k] = convert<T>(0.0f);
  grad[3 * elements + elements / 2] = convert<T>(INFINITY);
  const bool counts[rows] = {true, true, true, false, true, true};
  std::vector<T> best[2], best_grad[2];
  std::vector<A> loss[2], best_loss[2];
  bool flags[2][5][rows] = {};
  std::vector<int64_t> age[2];
  for (int side = 0; side < 2; ++side) {
    best[side] = pixels_of<T>(rows * elements, 3), best_grad[side] = best[side];
    loss[side] = {1, 2, 3, 4, 5, 6}, best_loss[side] = {9, 1, 3, 2, 7, A(INFINITY)};
    age[side] = {0, 0, 3, 0, 5, 1};
    flags[side][0][5] = true;
    WatchArgs args{};
    args.rows = rows, args.elements = elements, args.element_size = sizeof(T);
    args.is_double = sizeof(T) == sizeof(double);
    args.x = x.data(), args.grad = rows_of(grad, elements, 1);
    if (keeps) args.best = best[side].data(), args.best_grad = best_grad[side].data();
    args.loss = loss[side].data(), args.ahead = ahead.data(), args.counts = counts;
    args.best_loss = best_loss[side].data();
    args.found = flags[side][0], args.fooled = flags[side][1], args.zero = flags[side][2];
    args.nan_grad = flags[side][3], args.nan_logits = flags[side][4], args.age = age[side].data();
    std::vector<double> scratch(elements);
    side ? attack_watch_cuda(args, nullptr)
         : attack_watch_baseline(args, reinterpret_cast<float*>(scratch.data()), 0, rows);
  }
  const auto same = [&](const auto& t) {
    return std::memcmp(t[0].data(), t[1].data(), t[0].size() * sizeof(t[0][0])) == 0;
  };
  report(label<T>(keeps ? "watch" : "watch alone", rows, elements),
         same(best) && same(best_grad) && loss[0] == loss[1] && best_loss[0] == best_loss[1] &&
             age[0] == age[1] && std::memcmp(flags[0], flags[1], sizeof(flags[0])) == 0);
}

template <class T>
void warp_case(int64_t channels, int64_t rows, int64_t columns, bool own_poses) {
  using A = Arithmetic<T>;
  constexpr int64_t images = 2, poses = 5;
  const A turns[images * poses * 4] = {
      1,       0,        0,       0,       0, 1,  0,  0, A(0.8), A(0.6),
      A(0.5),  A(-1.25), A(0.6),  A(-0.8), 0, 2,  -1, 0, 1,      1,
      A(0.96), A(0.28),  A(-2.5), 0,       0, -1, 3,  0, 1,      0,
      A(1e30), 0,        A(NAN),  0,       0, 0,  1,  0, 0,      A(0.5)};
  WarpArgs args{};
  args.images = images, args.poses = poses, args.channels = channels;
  args.rows = rows, args.columns = columns, args.dtype = kType<T>;
  args.turns = turns, args.turns_stride = own_poses ? poses * 4 : 0;
  const int64_t small = images * channels * rows * columns, large = small * poses;
  for (const bool transposed : {false, true}) {
    const auto in = random_values<T>(transposed ? large : small, 7);
    Sides<T> out(transposed ? small : large);
    args.in = in.data();
    args.out = out.cpu.data();
    if (transposed) {
      warp_transposed_baseline(args, 0, images * channels);
    } else {
      std::vector<A> corners(images * channels * args.padded() * 2);
      args.corners = corners.data();
      warp_corners_baseline(args, 0, images * channels * (rows + 4));
      warp_baseline(args, 0, images * poses * rows);
    }
    args.out = out.gpu.data();
    transposed ? warp_transposed_cuda(args, nullptr) : warp_cuda(args, nullptr);
    report(label<T>(transposed ? "warp transposed" : "warp", rows, columns), out.agree());
  }
}

// A column of zeros, and wanted or not: the other gradient.
template <class T>
void perceptual_case(int64_t channels, int64_t pixels, bool weighted, bool both) {
  using A = Arithmetic<T>;
  constexpr int64_t images = 2;
  const int64_t elements = images * channels * pixels;
  auto f = random_values<T>(elements, 1);
  const auto r = random_values<T>(elements, 2);
  const auto weights = pixels_of<A>(channels, 3), upstream = random_values<A>(images * pixels, 4);
  for (int64_t c = 0; c < channels; ++c) f[c * pixels] = T{};
  PerceptualArgs args{};
  args.images = images, args.channels = channels, args.pixels = pixels, args.dtype = kType<T>;
  args.features = f.data(), args.reference = r.data();
  args.weights = weighted ? weights.data() : nullptr;
  const int64_t units = images * ceil_div(pixels, kColumns);
  Sides<A> distance(images * pixels);
  args.distance = distance.cpu.data();
  perceptual_baseline(args, 0, units);
  args.distance = distance.gpu.data();
  perceptual_cuda(args, nullptr);
  Sides<T> of_f(elements), of_r(elements);
  args.distance = nullptr, args.upstream = upstream.data();
  args.grad_features = of_f.cpu.data(), args.grad_reference = both ? of_r.cpu.data() : nullptr;
  perceptual_baseline(args, 0, units);
  args.grad_features = of_f.gpu.data(), args.grad_reference = both ? of_r.gpu.data() : nullptr;
  perceptual_cuda(args, nullptr);
  report(label<T>("perceptual", channels, pixels),
         distance.agree() && of_f.agree() && (!both || of_r.agree()));
}

template <class T>
void cases() {
  for (const Norm norm : {Norm::kLinf, Norm::kL2, Norm::kL1, Norm::kL0}) {
    for (int kind = 0; kind < (has_momentum(norm) ? 3 : 2); ++kind) {
      step_case<T>(norm, 2, 3, 7, kind);
      if (std::is_same_v<T, float>) step_case<T>(norm, 2, 3, 400, kind);
    }
    if (norm == Norm::kL0) continue;
    hyperplane_case<T>(norm, 2, 33);
    if (std::is_same_v<T, float>) hyperplane_case<T>(norm, 2, 1100);
  }
  apgd_case<T>(300, Norm::kLinf);
  apgd_case<T>(33, Norm::kL2);
  if (std::is_same_v<T, float>) apgd_case<T>(1100, Norm::kL2);
  warp_case<T>(3, 8, 8, false);
  warp_case<T>(1, 5, 19, true);
  perceptual_case<T>(19, 70, true, false);
  perceptual_case<T>(3, 5, false, true);
  for (const bool flag : {false, true}) {
    for (const Loss loss : {Loss::kCrossEntropy, Loss::kMargin, Loss::kDlr}) {
      loss_case<T>(loss, flag, 9, 3);
      loss_case<T>(loss, flag, 3, 70);
    }
    start_case<T>(13, flag);
    watch_case<T>(flag ? 300 : 33, flag);
    for (const Norm norm : {Norm::kLinf, Norm::kL2, Norm::kL1}) {
      square_case<T>(norm, 3, 5, 6, flag);
      if (std::is_same_v<T, float>) square_case<T>(norm, 1, 40, 31, flag);
    }
  }
}

}  // namespace

int main() {
  cases<float>();
  cases<double>();
  cases<Half>();
  cases<BFloat16>();
  return finish();
}
