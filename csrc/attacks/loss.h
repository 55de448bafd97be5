// The loss of each image that an attack raises, its derivative by the logits, and by how much the
// image is misclassified; the arguments of the kernels and the arithmetic that both devices run.
#pragma once

#include "attacks/rows.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::attacks {

// As robustcore/ops/attacks/loss.py numbers them.
enum class Loss : int32_t { kCrossEntropy, kMargin, kDlr };

struct LossArgs {
  int64_t rows, classes;
  Loss loss;
  bool lowered;                     // the negative, and labels are classes to reach
  StridedView logits;               // [rows, classes]
  const int64_t *labels, *targets;  // [rows]; targets null: none
  double rounding;                  // by which logits differ at least, of the largest of them
  void *value, *ahead;              // [rows], in the arithmetic type
  StridedView place;                // [rows, classes]: where slope lies
  void* slope;                      // of the dtype of the logits
};

// A unit is a row. `scratch` holds a row of the arithmetic type.
RC_VARIANTS(attack_loss, const LossArgs& args, float* scratch, int64_t begin, int64_t end);
void attack_loss_cuda(const LossArgs& args, void* stream);

inline namespace RC_ISA {

// The four largest logits, of equal ones the first; -infinity where there are none.
template <class T>
struct Top {
  T v[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  int32_t k[4] = {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX};

  RC_HOST_DEVICE void insert(T value, int32_t at) {
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (value > v[i] || (value == v[i] && at < k[i])) {
        const T v_i = v[i];
        const int32_t k_i = k[i];
        v[i] = value, k[i] = at;
        value = v_i, at = k_i;
      }
    }
  }
};

// slope = p exp(z - lse) + sum_i at(k_i) c_i.
template <class T>
struct Slope {
  T p = 0, lse = 0;
  int64_t k[5] = {-1, -1, -1, -1, -1};
  T c[5] = {0, 0, 0, 0, 0};

  template <class L>
  RC_HOST_DEVICE typename L::Float operator()(typename L::Float z) const {
    return p == T(0) ? L::splat(T(0)) : L::splat(p) * exp<L>(z - L::splat(lse));
  }
  RC_HOST_DEVICE T extra(int64_t at) const {
    T sum = 0;
    RC_UNROLL
    for (int i = 0; i < 5; ++i) sum += at == k[i] ? c[i] : T(0);
    return sum;
  }
};

// What becomes of a row: `row` brings top(), largest() (the largest magnitude, NaN where a logit
// is), logit(k), sums and z(k, n).
template <class Row>
struct RowLoss {
  using T = typename Row::T;
  using L = typename Row::L;
  T value, ahead;
  Slope<T> slope;

  RC_HOST_DEVICE RowLoss(const LossArgs& args, int64_t at, Row& row) {
    const Top<T> top = row.top();
    const T largest = row.largest();
    const int64_t y = args.labels[at], t = args.targets ? args.targets[at] : -1;
    const T own = row.logit(y);
    const bool second = top.k[0] == y;
    const T rival = second ? top.v[1] : top.v[0], ahead_by = rival - own;
    const T slack = static_cast<T>(args.rounding) * largest;
    ahead = (args.lowered ? -ahead_by : ahead_by) - (largest < T(INFINITY) ? slack : T(0));
    if (!(largest >= T(0))) ahead = largest;
    const T sign = args.lowered ? T(-1) : T(1);
    if (args.loss == Loss::kCrossEntropy) {
      const T most = top.v[0];
      const double sum =
          row.sums(args.classes, [&](int64_t k, int n, typename L::Float& a,
                                     auto&) { a = a + exp<L>(row.z(k, n) - L::splat(most)); })
              .a;
      const T log_sum = log<OneLane<T>>(static_cast<T>(sum));
      slope.p = sign, slope.lse = most + log_sum;
      slope.k[0] = y, slope.c[0] = -sign;
      value = sign * (log_sum + (most - own));
    } else {
      set(args, top, y, t, t < 0 ? rival - own : row.logit(t) - own,
          t < 0 ? (second ? top.k[1] : top.k[0]) : t, sign);
    }
    if (!(largest >= T(0))) value = largest;
  }

 private:
  RC_HOST_DEVICE void set(const LossArgs& args, const Top<T>& top, int64_t y, int64_t t, T margin,
                          int64_t rival, T sign) {
    slope.k[0] = rival, slope.c[0] = sign, slope.k[1] = y, slope.c[1] = -sign;
    value = sign * margin;
    if (args.loss == Loss::kMargin || args.classes < (t < 0 ? 3 : 4)) return;
    const bool targeted = t >= 0;
    const T low = targeted ? (top.v[2] + top.v[3]) / 2 : top.v[2];
    const T width = top.v[0] - low + T(1e-12), ratio = sign * margin / width;
    // Where y ranks third, the ratio is 1 whatever the logits are: the margin has a slope there.
    const T moving = !targeted && top.k[2] == y ? T(0) : ratio;
    slope.k[2] = top.k[0], slope.c[2] = -moving;
    slope.k[3] = top.k[2], slope.c[3] = targeted ? moving / 2 : moving;
    if (targeted) slope.k[4] = top.k[3], slope.c[4] = moving / 2;
    RC_UNROLL
    for (int i = 0; i < 5; ++i) slope.c[i] /= width;
    value = ratio;
  }
};

}  // namespace RC_ISA
}  // namespace robustcore::attacks
