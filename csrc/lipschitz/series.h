// The exponential of a skew convolution as a polynomial of it: the recurrence's steps, and on the
// CPU whole series.
#pragma once

#include "common/dtype.h"
#include "common/variants.h"
#include "common/winograd_plan.h"

namespace robustcore::lipschitz {

// out = alpha * z + beta * a + gamma * b; total_out = total_scale * total + delta * out.
// Everything has `count` elements in the same order. a, b and the pair of totals may be null; out
// may be z, a or b, and total_out may be total.
struct UpdateArgs {
  int64_t count;
  DType dtype;
  const void *z, *a, *b, *total;
  void *out, *total_out;
  double alpha, beta, gamma, total_scale, delta;
};

constexpr int64_t kUpdateRun = 8192;  // elements of a unit
RC_VARIANTS(update, const UpdateArgs& args, int64_t begin, int64_t end);
void update_cuda(const UpdateArgs& args, void* stream);

// A polynomial of the 3 x 3 convolution L, by its recurrence from k = degree - 1 down to 0:
//   u[degree] = coefficients[degree] x,  u[degree + 1] = 0,
//   u[k] = coefficients[k] x + step L u[k + 1] + carry u[k + 2], with `first` for `step` at k = 0,
// and y = u[0]. Images are float32 and channels last.
struct SeriesArgs {
  static constexpr int64_t kMaxDegree = 64;
  WinogradPlan plan;
  int64_t degree;
  float coefficients[kMaxDegree + 1], first, step, carry;
  const float* filter;  // L's, packed
  const float* x;       // [images, height, width, channels]
  float* kept;          // u[1], ..., u[degree - 1], each like x; or null
  float* y;             // like x

  int64_t channels() const {
    return plan.shape.in;
  }
  int64_t image() const {  // floats
    return plan.shape.height * plan.shape.width * plan.shape.in;
  }
  int64_t scratch() const {
    return 3 * plan.staged() + plan.patches() + plan.products();
  }
};
RC_WIDE_VARIANTS(series, const SeriesArgs& args, float* scratch, int64_t begin, int64_t end);

// Its adjoint for a skew L: m[0] = grad, m[k + 1] = -step L m[k] + carry m[k - 1] (`first` at 0),
// grad_x = sum of coefficients[k] m[k]. The filter's gradient is the sum over k of step times that
// of <m[k], L u[k + 1]>; its factors are left in `work`.
struct SeriesBackwardArgs {
  SeriesArgs series;  // kept: null to compute it again; y is unused
  WinogradGradientPlan plan;
  const float* grad;  // like x
  float* grad_x;      // like x
  float* work;        // [plan.work()]

  int64_t recomputed() const {  // floats of a group's u
    return series.kept ? 0 : (series.degree - 1) * plan.group * series.image();
  }
  int64_t scratch() const {
    return series.scratch() + plan.first_scratch() + recomputed();
  }
};
RC_WIDE_VARIANTS(series_backward, const SeriesBackwardArgs& args, float* scratch, int64_t begin,
                 int64_t end);

}  // namespace robustcore::lipschitz
