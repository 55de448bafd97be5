// Executes the density kernels through the shim and compares them with the CPU kernels, bit for
// bit. Prints one line a case; the exit status is the number of cases that differ (at most 99).
#include <cstring>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "batch_norm_cases.h"
#include "cases.h"
#include "density/grad_norm.h"
#include "density/logsumexp.h"
#include "linear_logsumexp_cases.h"

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

// Where rows that blocks share leave the sums of segments; a poisoned place of their own each time.
template <class A>
struct Parts {
  std::vector<A> values;
  Parts(int64_t rows, int64_t columns) : values(2 * rows * ceil_div(columns, kSegment), A(NAN)) {}
  template <class Args>
  Args& given(Args& args) {
    args.plan.parts = values.data();
    return args;
  }
};

// The forward pass; its results, which the backward passes take.
template <class A>
Pair<A> logsumexp_forward_case(const LogitsChunk& chunk, bool in_chunks, const std::string& name) {
  const int64_t rows = chunk.rows;
  Pair<A> lse(rows);
  std::vector<A> max[2], sum[2], target[2];
  for (int side = 0; side < 2; ++side) {
    max[side] = random_values<A>(rows, 6), sum[side].assign(rows, A(1.5)),
    target[side].assign(rows, A(9));
    LogsumexpArgs args{};
    args.chunk = chunk;
    args.first = !in_chunks;
    if (in_chunks) {
      args.max = max[side].data(), args.sum = sum[side].data();
      args.target_logits = target[side].data();
    }
    args.lse = side ? lse.gpu.data() : lse.cpu.data();
    side ? logsumexp_cuda(Parts<A>(rows, chunk.classes).given(args), nullptr)
         : logsumexp_baseline(args, 0, rows);
  }
  report("logsumexp" + name,
         lse.agree() && same(max[0], max[1]) && same(sum[0], sum[1]) && same(target[0], target[1]));
  return lse;
}

template <class T>
void logsumexp_case(int64_t rows, int64_t classes, int64_t stride, bool in_chunks) {
  using A = Arithmetic<T>;
  auto logits = random_values<T>(rows * classes * stride, 1);
  const auto v = random_values<T>(rows * classes, 2);
  const auto bias = random_values<A>(classes, 3), grad = random_values<A>(rows, 4),
             grad_target = random_values<A>(rows, 5);
  if (rows > 2) {
    for (int64_t k = 0; k < classes; ++k) {
      logits[2 * classes * stride + k * stride] = convert<T>(-INFINITY);
    }
    logits[classes * stride] = convert<T>(INFINITY);
  }
  std::vector<int64_t> targets(rows);
  for (int64_t n = 0; n < rows; ++n) targets[n] = 7 + (n * 31) % (2 * classes);
  LogitsChunk chunk{};
  chunk.rows = rows, chunk.classes = classes;
  chunk.logits = matrix(logits, classes * stride, classes, stride);
  if (in_chunks) {
    chunk.bias = bias.data();
    chunk.targets = targets.data();
    chunk.first_class = 7;
  }
  const std::string name = " dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
                           std::to_string(rows) + "x" + std::to_string(classes) +
                           (in_chunks ? " chunk" : "") + (stride > 1 ? " strided" : "");

  const Pair<A> lse = logsumexp_forward_case<A>(chunk, in_chunks, name);
  Pair<T> weights(rows * classes), curvature(rows * classes), second(rows * classes);
  Pair<A> dot(rows);
  for (int side = 0; side < 2; ++side) {
    LogsumexpBackwardArgs back{};
    back.chunk = chunk;
    back.grad = {grad.data(), 1}, back.lse = {lse.cpu.data(), 1};
    back.grad_target = {grad_target.data(), 1};
    back.weights = side ? weights.gpu.data() : weights.cpu.data();
    side ? logsumexp_backward_cuda(back, nullptr) : logsumexp_backward_baseline(back, 0, rows);

    LogsumexpDoubleBackwardArgs twice{};
    twice.chunk = chunk;
    twice.grad = back.grad, twice.lse = back.lse, twice.grad_target = back.grad_target;
    twice.v = matrix(v, classes, classes, 1);
    twice.v_bias = in_chunks ? bias.data() : nullptr;
    auto& sums = side ? dot.gpu : dot.cpu;
    sums.assign(rows, A(0.25));
    twice.dot = sums.data();
    twice.reduce = true;
    twice.curvature = side ? curvature.gpu.data() : curvature.cpu.data();
    twice.weights = side ? second.gpu.data() : second.cpu.data();
    side ? logsumexp_double_backward_cuda(Parts<A>(rows, classes).given(twice), nullptr)
         : logsumexp_double_backward_baseline(twice, 0, rows);
  }
  report("logsumexp_backward" + name, weights.agree());
  report("logsumexp_double_backward" + name, curvature.agree() && dot.agree() && second.agree());
}

template <class T>
void grad_norm_case(int64_t rows, int64_t outer, int64_t inner, double p, bool dense = false) {
  using A = Arithmetic<T>;
  const int64_t elements = outer * inner;
  auto grad = random_values<T>(rows * elements * 2, 1);
  if (rows > 1) {
    for (int64_t k = 0; k < elements * 2; ++k) grad[elements * 2 + k] = convert<T>(0.0f);
  }
  StridedView view = matrix(grad, elements * 2, outer, 2);
  view.dims = 2;  // transposed, every other element
  view.sizes[1] = inner, view.strides[1] = 2 * outer;
  if (dense) view = matrix(grad, elements, elements, 1);
  const auto upstream = random_values<A>(rows, 4);
  const auto v = random_values<T>(rows * elements, 2);
  Pair<A> norm(rows), dot(rows);
  Pair<T> dual(rows * elements), curvature(rows * elements);
  for (int side = 0; side < 2; ++side) {
    GradNormArgs args{rows, elements, view, p, side ? norm.gpu.data() : norm.cpu.data(), {}};
    side ? grad_norm_cuda(Parts<A>(rows, elements).given(args), nullptr)
         : grad_norm_baseline(args, 0, rows);

    GradNormBackwardArgs back{};
    back.rows = rows, back.elements = elements;
    back.grad = view;
    back.p = p;
    back.upstream = {upstream.data(), 1}, back.norm = {norm.cpu.data(), 1};
    back.dual = side ? dual.gpu.data() : dual.cpu.data();
    side ? grad_norm_backward_cuda(Parts<A>(rows, elements).given(back), nullptr)
         : grad_norm_backward_baseline(back, 0, rows);

    GradNormDoubleBackwardArgs twice{};
    twice.rows = rows, twice.elements = elements;
    twice.grad = view, twice.v = matrix(v, elements, elements, 1);
    twice.p = p;
    twice.upstream = back.upstream, twice.norm = back.norm;
    twice.dot = side ? dot.gpu.data() : dot.cpu.data();
    twice.curvature = side ? curvature.gpu.data() : curvature.cpu.data();
    side ? grad_norm_double_backward_cuda(Parts<A>(rows, elements).given(twice), nullptr)
         : grad_norm_double_backward_baseline(twice, 0, rows);
  }
  report("grad_norm dtype " + std::to_string(static_cast<int>(kType<T>)) + " " +
             std::to_string(elements) + (dense ? " dense p " : " p ") + std::to_string(p),
         norm.agree() && dual.agree() && dot.agree() && curvature.agree());
}

// All shapes in float32; in the other dtypes one of each kind, a warp and a block a row.
template <class T>
void cases() {
  constexpr bool all = std::is_same_v<T, float>;
  std::vector<std::pair<int64_t, int64_t>> shapes{{3, 10}, {3, 2100}};
  if (all) shapes.insert(shapes.end(), {{1, 1}, {20, 33}, {2, 9000}});
  for (const auto& [rows, classes] : shapes) {
    logsumexp_case<T>(rows, classes, 1, false);
    logsumexp_case<T>(rows, classes, 2, false);
    if constexpr (sizeof(T) >= sizeof(float)) logsumexp_case<T>(rows, classes, 1, true);
  }
  for (const double p : {1.0, 2.0, 3.5, static_cast<double>(INFINITY)}) {
    if (all) grad_norm_case<T>(3, 1, 1, p);
    grad_norm_case<T>(9, 3, 13, p);
    if (all) grad_norm_case<T>(3, 50, 60, p);
    grad_norm_case<T>(2, 1, 2308, p, true);
  }
  // More segments than a warp joins at a time.
  if (all) logsumexp_case<T>(1, 33 * kSegment + 12, 1, false);
  if (all) grad_norm_case<T>(1, 1, 33 * kSegment + 12, 2.0, true);
}

}  // namespace

int main() {
  cases<float>();
  cases<double>();
  cases<Half>();
  cases<BFloat16>();
  attention_cases();
  linear_logsumexp_cases();
  batch_norm_cases();
  return finish();
}
