// The fused linear and log-sum-exp, as the shim runs it, against sums in double with an error bound
// of their own: what is compared has no CPU kernel.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cases.h"
#include "density/linear_logsumexp.h"

namespace robustcore::density {

// A matrix whose rows are whole 16 bytes, at a multiple of them.
template <class E>
struct Matrix {
  int64_t rows, width;
  std::vector<E> memory;
  E* data;
  Matrix(int64_t rows_, int64_t used, int64_t width_, uint32_t seed, float scale)
      : rows(rows_), width(width_), memory(rows_ * width_ + 16 / sizeof(E)) {
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    data = memory.data() + (16 - address % 16) % 16 / sizeof(E);
    const std::vector<float> values = random_values<float>(rows * used, seed);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t d = 0; d < used; ++d) {
        data[i * width + d] = convert<E>(values[i * used + d] * scale);
      }
    }
  }
  double at(int64_t i, int64_t d) const {
    return to_float(data[i * width + d]);
  }
};

template <class E>
double dot(const Matrix<E>& a, int64_t i, const Matrix<E>& b, int64_t j) {
  double sum = 0;
  for (int64_t d = 0; d < a.width; ++d) sum += a.at(i, d) * b.at(j, d);
  return sum;
}

// NaN and infinities as wanted, numbers up to `error`.
inline bool near(double got, double want, double error) {
  if (std::isnan(want)) return std::isnan(got);
  return got == want || std::abs(got - want) <= error;
}

// A linear layer of E and what its kernels are to give, in double.
template <class E>
struct LinearCase {
  static constexpr double kUnit = sizeof(E) == 2 ? 0x1p-8 : 0x1p-20;  // of a weight that multiplies
  int64_t rows, classes, width;
  Matrix<E> features, weight, v_features, v_weight;
  std::vector<float> bias, v_bias, grad, grad_target, lse, dots;
  std::vector<int64_t> targets;
  std::vector<double> z, u;  // [rows, classes]: logits and their derivative

  LinearCase(int64_t n, int64_t k, int64_t used, float scale)
      : rows(n),
        classes(k),
        width(ceil_div(used, 16 / sizeof(E)) * (16 / sizeof(E))),
        features(n, used, width, 1, scale),
        weight(k, used, width, 2, 0.1f),
        v_features(n, used, width, 3, 0.2f),
        v_weight(k, used, width, 4, 0.1f),
        bias(random_values<float>(k, 5)),
        v_bias(random_values<float>(k, 6)),
        grad(random_values<float>(n, 7)),
        grad_target(random_values<float>(n, 8)),
        lse(n),
        dots(n),
        targets(n),
        z(n * k),
        u(n * k) {
    for (int64_t i = 0; i < n; ++i) targets[i] = i % 5 == 4 ? k + i : (i * 31) % k;
  }

  // After features and bias are final.
  void compute() {
    for (int64_t i = 0; i < rows; ++i) {
      double top = -INFINITY, sum = 0, slope = 0;
      for (int64_t k = 0; k < classes; ++k) {
        z[i * classes + k] = dot(features, i, weight, k) + bias[k];
        u[i * classes + k] =
            dot(v_features, i, weight, k) + dot(features, i, v_weight, k) + v_bias[k];
        top = std::max(top, z[i * classes + k]);
      }
      const double shift = std::isfinite(top) ? top : 0;
      for (int64_t k = 0; k < classes; ++k) sum += std::exp(z[i * classes + k] - shift);
      lse[i] = static_cast<float>(shift + std::log(sum));
      for (int64_t k = 0; k < classes; ++k) slope += probability(i, k) * u[i * classes + k];
      dots[i] = static_cast<float>(slope);
    }
  }
  double probability(int64_t i, int64_t k) const {
    return std::exp(z[i * classes + k] - (lse[i] == -INFINITY ? 0.0 : double{lse[i]}));
  }
  double weight_of(SweepWeights kind, int64_t i, int64_t k) const {
    const double p = grad[i] * probability(i, k);
    if (kind == SweepWeights::kCurvature) return p * (u[i * classes + k] - dots[i]);
    return p + (targets[i] == k ? grad_target[i] : 0.0f);
  }

  std::string name(const char* what) const {
    return std::string("linear ") + what + " dtype " + std::to_string(static_cast<int>(kType<E>)) +
           " " + std::to_string(rows) + "x" + std::to_string(classes) + "x" + std::to_string(width);
  }

  // Both sides, and poisoned memory for what the kernels write.
  SweepArgs arguments(SweepWeights kind, bool classes_left) {
    SweepArgs args{};
    args.weights = kind, args.dtype = args.out_dtype = kType<E>;
    const bool curvature = kind == SweepWeights::kCurvature;
    for (float& b : bias) minus_bias.push_back(-b);
    for (float& b : v_bias) minus_v_bias.push_back(-b);
    SweepSide of_rows{rows, features.data, curvature ? v_features.data : nullptr, nullptr, nullptr};
    if (kind != SweepWeights::kOnline) {
      shifts = lse;
      for (float& s : shifts) s = s == -INFINITY ? 0 : s;
      of_rows.shift = shifts.data();
    }
    if (curvature) of_rows.along_shift = dots.data();
    const SweepSide of_classes{classes, weight.data, curvature ? v_weight.data : nullptr,
                               minus_bias.data(), curvature ? minus_v_bias.data() : nullptr};
    args.left = classes_left ? of_classes : of_rows,
    args.right = classes_left ? of_rows : of_classes;
    args.classes_left = classes_left;
    args.scale = grad.data();
    if (kind == SweepWeights::kGradient) {
      args.targets = targets.data(), args.grad_target = grad_target.data();
    }
    args.width = width;
    const int64_t n = args.left.count;
    args.lse = poisoned(result, n), args.row_sums = poisoned(row_sums, n);
    return args;
  }
  std::vector<float> minus_bias, minus_v_bias, shifts, max, sums, parts, result, row_sums;

  // As the op has it.
  void run(SweepArgs args, int64_t blocks) {
    const SweepPlan plan = plan_of(args, blocks);
    args.splits = plan.splits;
    for (int64_t first = 0; first < args.left.count; first += plan.at_once) {
      SweepArgs part = part_of(args, first, plan.at_once);
      part.max = poisoned(max, plan.numbers()), part.sums = poisoned(sums, plan.numbers());
      part.parts = poisoned(parts, plan.numbers() * parts_pitch(width));
      linear_sweep_cuda(part, nullptr);
    }
  }

  static float* poisoned(std::vector<float>& to, int64_t n) {
    to.assign(n, std::numeric_limits<float>::quiet_NaN());
    return to.data();
  }
};

// lse and the mean of the classes' weights.
template <class E>
void forward_case(LinearCase<E> c, int64_t blocks, const char* what, bool with_mean = true) {
  SweepArgs args = c.arguments(SweepWeights::kOnline, false);
  std::vector<float> mean(c.rows * c.width, 9.0f);
  args.out_dtype = DType::kFloat32;
  args.value = with_mean ? c.weight.data : nullptr;
  args.out = mean.data(), args.row_sums = nullptr;
  c.run(args, blocks);
  bool good = true;
  for (int64_t i = 0; i < c.rows; ++i) {
    good = good && near(c.result[i], c.lse[i], 1e-5 * (1 + std::abs(c.lse[i])));
    for (int64_t d = 0; with_mean && d < c.width; ++d) {
      double want = 0, size = 0;
      for (int64_t k = 0; k < c.classes; ++k) {
        const double p = c.probability(i, k);
        want += p * c.weight.at(k, d), size += p * std::abs(c.weight.at(k, d));
      }
      good = good && near(mean[i * c.width + d], want, (2e-5 + 2e-6 * std::abs(c.lse[i])) * size);
    }
  }
  report(c.name(what), good);
}

// Weights times values, and the weights' sums, with either side to the left.
template <class E>
void weights_case(LinearCase<E> c, SweepWeights kind, bool classes_left, int64_t blocks,
                  bool with_value, const char* what) {
  SweepArgs args = c.arguments(kind, classes_left);
  const Matrix<E>& value = classes_left ? c.features : c.weight;
  const int64_t left = args.left.count, right = args.right.count;
  std::vector<E> out(left * c.width, convert<E>(0.5f));
  args.value = with_value ? value.data : nullptr;
  args.out = out.data(), args.add = blocks > 1;
  c.run(args, blocks);
  bool good = true;
  for (int64_t i = 0; i < left; ++i) {
    double sum = 0, sum_size = 0;
    std::vector<double> w(right), error(right);
    for (int64_t j = 0; j < right; ++j) {
      const int64_t row = classes_left ? j : i, k = classes_left ? i : j;
      w[j] = c.weight_of(kind, row, k);
      // Of exp(z - lse) the rounding of z and lse; of a curvature, that of u - dot too.
      const double p = std::abs(c.grad[row] * c.probability(row, k));
      const double terms = kind == SweepWeights::kCurvature
                               ? std::abs(c.u[row * c.classes + k]) + std::abs(c.dots[row])
                               : 1.0;
      const double of_p = 4e-6 + 1e-6 * std::abs(c.lse[row]);
      const double twice = kind == SweepWeights::kCurvature && sizeof(E) == 2 ? 0x1p-8 : 0.0;
      error[j] = p * terms * of_p + twice * std::abs(w[j]);
      sum += w[j], sum_size += error[j] + 1e-6 * std::abs(w[j]);
    }
    good = good && near(c.row_sums[i], sum, sum_size);
    for (int64_t d = 0; with_value && d < c.width; ++d) {
      double want = args.add ? 0.5 : 0, bound = 0;
      for (int64_t j = 0; j < right; ++j) {
        const double v = std::abs(value.at(j, d));
        want += w[j] * value.at(j, d);
        bound += (error[j] + (LinearCase<E>::kUnit + 1e-6) * std::abs(w[j])) * v;
      }
      bound += (sizeof(E) == 2 ? 0x1p-8 : 0x1p-23) * std::abs(want);
      good = good && near(to_float(out[i * c.width + d]), want, bound);
    }
  }
  report(c.name(what), good);
}

template <class E>
void small_linear_cases() {
  LinearCase<E> c(3, 5, 7, 0.3f);
  c.compute();
  for (const bool mean : {false, true}) forward_case(c, 1, "forward", mean);
  for (const bool left : {false, true}) {
    for (const SweepWeights kind : {SweepWeights::kGradient, SweepWeights::kCurvature}) {
      weights_case(c, kind, left, 1, true, left ? "of classes" : "of rows");
    }
  }
  weights_case(c, SweepWeights::kCurvature, false, 1, false, "sums");
}

// Several tiles of both sides: one block at a time, and more than there are tiles of left.
template <class E>
void large_linear_cases(int64_t width) {
  LinearCase<E> c(130, 140, width, 0.3f);
  c.compute();
  forward_case(c, 4, "forward, splits");
  weights_case(c, SweepWeights::kGradient, true, 1, true, "of classes, parts");
  weights_case(c, SweepWeights::kCurvature, false, 4, true, "of rows, splits");
}

// Logits of thousands, classes that are impossible, a class that is certain, a row of NaN.
template <class E>
void linear_extremes() {
  LinearCase<E> c(5, 150, 24, 200.0f);
  for (int64_t k = 3; k < 140; ++k) c.bias[k] = -INFINITY;
  c.features.data[0] = convert<E>(NAN);
  c.compute();
  forward_case(c, 2, "extremes");
  weights_case(c, SweepWeights::kGradient, true, 1, true, "extremes, gradient");
  std::fill(c.bias.begin(), c.bias.end(), -INFINITY);
  c.compute();
  forward_case(c, 1, "nothing is possible");
  c.bias.assign(c.classes, 0.5f);
  c.bias[c.classes - 1] = INFINITY;
  c.compute();
  forward_case(c, 2, "one is certain", false);
}

inline void linear_logsumexp_cases() {
  small_linear_cases<BFloat16>();
  small_linear_cases<float>();
  large_linear_cases<BFloat16>(136);
  large_linear_cases<float>(36);
  linear_extremes<BFloat16>();
  linear_extremes<float>();
}

}  // namespace robustcore::density
