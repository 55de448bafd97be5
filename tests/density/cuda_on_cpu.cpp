// Executes the density kernels of cuda.cu through the shim and compares them with the CPU kernels,
// bit for bit. Prints one line a case; the exit status is the number of cases that differ (at most
// 99).
#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "density/launch.h"
#include "density/simd.h"

using namespace robustcore;
using namespace robustcore::density;

namespace {

template <class T>
StridedView matrix(const std::vector<T>& data, int64_t row, int64_t columns, int64_t stride) {
  StridedView view{};
  view.data = data.data();
  view.dtype = kType<T>;
  view.dims = 1;
  view.image_stride = row;
  view.sizes[0] = columns;
  view.strides[0] = stride;
  return view;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Both sides of a comparison start from different poison, which shows what nobody wrote.
template <class T>
struct Pair {
  std::vector<T> cpu, gpu;
  explicit Pair(size_t n) : cpu(n), gpu(n) {
    std::memset(static_cast<void*>(cpu.data()), 0xCD, n * sizeof(T));
    std::memset(static_cast<void*>(gpu.data()), 0xAB, n * sizeof(T));
  }
  bool agree() const {
    return same(cpu, gpu);
  }
};

template <class T>
void lse_case(int64_t rows, int64_t classes, int64_t stride, bool chunk) {
  using A = Arithmetic<T>;
  auto z = random_values<T>(rows * classes * stride, 1);
  const auto v = random_values<T>(rows * classes, 2);
  const auto bias = random_values<A>(classes, 3), grad = random_values<A>(rows, 4),
             upstream = random_values<A>(rows, 5);
  if (rows > 2) {
    for (int64_t k = 0; k < classes; ++k)
      z[2 * classes * stride + k * stride] = convert<T>(-INFINITY);
    z[classes * stride] = convert<T>(INFINITY);
  }
  std::vector<int64_t> targets(rows);
  for (int64_t n = 0; n < rows; ++n) targets[n] = 7 + (n * 31) % (2 * classes);
  Logits logits{rows, classes, matrix(z, classes * stride, classes, stride), nullptr, nullptr, 0};
  if (chunk) {
    logits.bias = bias.data();
    logits.targets = targets.data();
    logits.first_class = 7;
  }
  const std::string name = " dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
                           std::to_string(rows) + "x" + std::to_string(classes) +
                           (chunk ? " chunk" : "") + (stride > 1 ? " strided" : "");

  Pair<A> lse(rows);
  std::vector<A> max[2], sum[2], target[2];
  for (int side = 0; side < 2; ++side) {
    max[side] = random_values<A>(rows, 6), sum[side].assign(rows, A(1.5)),
    target[side].assign(rows, A(9));
    LseArgs args{};
    args.logits = logits;
    args.first = !chunk;
    if (chunk) {
      args.max = max[side].data(), args.sum = sum[side].data();
      args.target_logits = target[side].data();
    }
    args.lse = side ? lse.gpu.data() : lse.cpu.data();
    side ? lse_cuda(args, nullptr) : simd_baseline.lse(args, 0, rows);
  }
  report("lse" + name,
         lse.agree() && same(max[0], max[1]) && same(sum[0], sum[1]) && same(target[0], target[1]));

  Pair<T> weights(rows * classes), curvature(rows * classes), second(rows * classes);
  Pair<A> dot(rows);
  for (int side = 0; side < 2; ++side) {
    LseGradArgs args{};
    args.logits = logits;
    args.grad = {grad.data(), 1}, args.lse = {lse.cpu.data(), 1};
    args.grad_target = {upstream.data(), 1};
    args.weights = side ? weights.gpu.data() : weights.cpu.data();
    args.dtype = kType<T>;
    side ? lse_grad_cuda(args, nullptr) : simd_baseline.lse_grad(args, 0, rows);

    LseHessArgs hess{};
    hess.logits = logits;
    hess.grad = args.grad, hess.lse = args.lse, hess.grad_target = args.grad_target;
    hess.v = matrix(v, classes, classes, 1);
    hess.v_bias = chunk ? bias.data() : nullptr;
    auto& sums = side ? dot.gpu : dot.cpu;
    sums.assign(rows, A(0.25));
    hess.dot = sums.data();
    hess.reduce = true;
    hess.curvature = side ? curvature.gpu.data() : curvature.cpu.data();
    hess.weights = side ? second.gpu.data() : second.cpu.data();
    hess.dtype = kType<T>;
    side ? lse_hess_cuda(hess, nullptr) : simd_baseline.lse_hess(hess, 0, rows);
  }
  report("lse_grad" + name, weights.agree());
  report("lse_hess" + name, curvature.agree() && dot.agree() && second.agree());
}

template <class T>
void norm_case(int64_t rows, int64_t outer, int64_t inner, double p) {
  using A = Arithmetic<T>;
  auto g = random_values<T>(rows * outer * inner * 2, 1);
  if (rows > 1) {
    for (int64_t k = 0; k < outer * inner * 2; ++k) g[outer * inner * 2 + k] = convert<T>(0.0f);
  }
  StridedView view = matrix(g, outer * inner * 2, outer, 2);
  view.dims = 2;  // transposed, every other element
  view.sizes[1] = inner, view.strides[1] = 2 * outer;
  const auto grad = random_values<A>(rows, 4);
  const auto v = random_values<T>(rows * outer * inner, 2);
  Pair<A> norm(rows), dot(rows);
  Pair<T> dual(rows * outer * inner), curvature(rows * outer * inner);
  for (int side = 0; side < 2; ++side) {
    NormArgs args{rows, outer * inner, view, p, side ? norm.gpu.data() : norm.cpu.data()};
    side ? norm_cuda(args, nullptr) : simd_baseline.norm(args, 0, rows);
    NormGradArgs back{rows,
                      outer * inner,
                      view,
                      p,
                      {grad.data(), 1},
                      {norm.cpu.data(), 1},
                      side ? dual.gpu.data() : dual.cpu.data(),
                      kType<T>};
    side ? norm_grad_cuda(back, nullptr) : simd_baseline.norm_grad(back, 0, rows);
    NormHessArgs hess{rows,
                      outer * inner,
                      view,
                      matrix(v, outer * inner, outer * inner, 1),
                      p,
                      back.grad,
                      back.norm,
                      side ? dot.gpu.data() : dot.cpu.data(),
                      side ? curvature.gpu.data() : curvature.cpu.data(),
                      kType<T>};
    side ? norm_hess_cuda(hess, nullptr) : simd_baseline.norm_hess(hess, 0, rows);
  }
  report("norm dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
             std::to_string(outer * inner) + " p " + std::to_string(p),
         norm.agree() && dual.agree() && dot.agree() && curvature.agree());
}

// All shapes in float32; in the other dtypes one of each kind, a warp and a block a row.
template <class T>
void cases() {
  constexpr bool all = std::is_same_v<T, float>;
  std::vector<std::pair<int64_t, int64_t>> shapes{{3, 10}, {3, 2100}};
  if (all) shapes.insert(shapes.end(), {{1, 1}, {20, 33}, {2, 9000}});
  for (const auto& [rows, classes] : shapes) {
    lse_case<T>(rows, classes, 1, false);
    lse_case<T>(rows, classes, 2, false);
    if constexpr (sizeof(T) >= sizeof(float)) lse_case<T>(rows, classes, 1, true);
  }
  for (const double p : {1.0, 2.0, 3.5, static_cast<double>(INFINITY)}) {
    if (all) norm_case<T>(3, 1, 1, p);
    norm_case<T>(9, 3, 13, p);
    if (all) norm_case<T>(3, 50, 60, p);
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
