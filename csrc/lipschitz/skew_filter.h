// The filter L = scale S / sigma that a SOC layer trains with, S the skew part of a weight, and its
// gradient. sigma is the smaller of two norms of S as a matrix, (out h) x (in w) and out x (in h
// w), by a step of power iteration each; their singular vectors count as constants in the gradient.
//
// float32, fewer than 2^31 elements. What is summed over input channels is summed in the one order
// of common/rows.h, so every device has the same bits, and the ranks of a job agree.
#pragma once

#include "common/rows.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::lipschitz {

struct FilterShape {  // [channels, channels, side, side]
  static constexpr int kMaxSide = 7;
  int channels, side;

  RC_HOST_DEVICE int taps() const {
    return side * side;
  }
  RC_HOST_DEVICE int row() const {
    return channels * taps();
  }
};

// Of the matrix (out h) x (in w), v1^T M u1 is the norm; of out x (in h w), v3^T M u3.
template <class T>
struct Vectors {
  T *u1, *v1;  // [channels, side]
  T* u3;       // [channels, taps]
  T* v3;       // [channels]
};

// A step: v = M u, then u = M^T v, both over their norms, at last into `kept` as well. M is skew up
// to swapped channels and flipped taps, so M^T v too reads S row by row.
struct PowerArgs {
  FilterShape shape;
  const float* weight;
  Vectors<float> kept, fresh;
  double* squares;  // [4, channels]: a row's share of the squared norms of v1, v3, u1, u3
  float* largest;   // [channels]: of a row of the weight
  float* norms;     // [3]: sigma of either matrix, and a thousandth of the weight's largest entry,
                    // which sigma is at least: less says nothing of it
  float usual;      // what that entry is at least, a tenth of the initialisation's
  bool second;      // M^T v
};
constexpr int64_t kFilterRun = 16;  // rows of a unit: reads of the transpose share lines
RC_VARIANTS(power_half, const PowerArgs& args, float* scratch, int64_t begin, int64_t end);
RC_VARIANTS(power_finish, const PowerArgs& args, int64_t begin, int64_t end);  // one unit
void power_cuda(const PowerArgs& args, void* stream);  // all of it; `second` is not read

// The filter: scale S / max(min(norms[0], norms[1]), norms[2]).
struct FilterArgs {
  FilterShape shape;
  const float *weight, *scale, *norms;
  void* out;
  DType dtype;         // of out: not float64
  bool channels_last;  // out: [out, taps, in] in memory, else [out, in, taps]
};
RC_VARIANTS(filter, const FilterArgs& args, int64_t begin, int64_t end);
void filter_cuda(const FilterArgs& args, void* stream);

// The weight's gradient out of that of the filter, first * grad + second * other.
struct FilterBackwardArgs {
  FilterShape shape;
  const void *grad, *other;  // laid out as FilterArgs::out; other may be null
  DType dtype;               // of both: not float64
  bool channels_last;
  float first, second;
  const float *weight, *scale, *norms;
  Vectors<const float> vectors;
  float* inner;  // [channels]: a row's share of <gradient of the filter, S>
  float* out;    // as the weight
};
RC_VARIANTS(filter_inner, const FilterBackwardArgs& args, float* scratch, int64_t begin,
            int64_t end);
RC_VARIANTS(filter_backward, const FilterBackwardArgs& args, int64_t begin, int64_t end);
void filter_backward_cuda(const FilterBackwardArgs& args, void* stream);

inline int64_t filter_units(const FilterShape& shape) {
  return ceil_div(shape.channels, kFilterRun);
}

inline namespace RC_ISA {

// S[o, i, t]
RC_HOST_DEVICE float skew_at(const float* weight, const FilterShape& s, int o, int i, int t) {
  const int taps = s.taps();
  return (weight[(o * s.channels + i) * taps + t] -
          weight[(i * s.channels + o) * taps + taps - 1 - t]) *
         0.5f;
}

// An entry of a vector of length 1; where a matrix maps to zero its vector stays what it was.
RC_HOST_DEVICE float unit_entry(float raw, float norm, float before) {
  return norm > 0 ? raw / norm : before;
}

// What the halves of a step multiply row r of S with: of tap t = (h, w), the j-th entry, over its
// norm. The first half: u1[j, w] and u3[j, t]; the second: v1[j, side - 1 - h] and v3[j].
struct Factor {
  const float *raw, *before;
  int stride, offset;
  float norm;

  RC_HOST_DEVICE float at(int j) const {
    const int k = j * stride + offset;
    return unit_entry(raw[k], norm, before[k]);
  }
};
RC_HOST_DEVICE Factor mixed_factor(const PowerArgs& a, int t, float norm) {
  const int k = a.shape.side;
  if (a.second) return {a.fresh.v1, a.kept.v1, k, k - 1 - t / k, norm};
  return {a.kept.u1, a.kept.u1, k, t % k, 1.0f};
}
RC_HOST_DEVICE Factor flat_factor(const PowerArgs& a, int t, float norm) {
  if (a.second) return {a.fresh.v3, a.kept.v3, 1, 0, norm};
  return {a.kept.u3, a.kept.u3, a.shape.taps(), t, 1.0f};
}

// Entries r of the two vectors that a half makes, of the sums mixed[t] and flat[t] over row r.
RC_HOST_DEVICE void write_row(const PowerArgs& a, int r, const float* mixed, const float* flat) {
  const int k = a.shape.side, taps = a.shape.taps(), n = a.shape.channels;
  const int along = a.second ? k : 1, across = a.second ? 1 : k;
  double squares = 0;
  RC_ROLL
  for (int i = 0; i < k; ++i) {
    float sum = 0;
    RC_ROLL
    for (int j = 0; j < k; ++j) sum += mixed[i * across + j * along];
    squares += static_cast<double>(sum) * sum;
    if (a.second) {
      a.fresh.u1[r * k + k - 1 - i] = -sum;
    } else {
      a.fresh.v1[r * k + i] = sum;
    }
  }
  a.squares[(a.second ? 2 : 0) * n + r] = squares;
  squares = 0;
  float total = 0;
  RC_ROLL
  for (int t = 0; t < taps; ++t) {
    total += flat[t];
    squares += static_cast<double>(flat[t]) * flat[t];
    if (a.second) a.fresh.u3[r * taps + taps - 1 - t] = -flat[t];
  }
  if (!a.second) {
    a.fresh.v3[r] = total;
    squares = static_cast<double>(total) * total;
  }
  a.squares[(a.second ? 3 : 1) * n + r] = squares;
}

// The end of a step, entry e of all four vectors in turn; norms in the order of `squares`.
RC_HOST_DEVICE void finish_entry(const PowerArgs& a, const float* norms, int e) {
  const int sides = a.shape.channels * a.shape.side, row = a.shape.row();
  float *fresh = a.fresh.v1, *kept = a.kept.v1;
  int which = 0;
  if (e >= 2 * sides + row) {
    e -= 2 * sides + row, which = 1, fresh = a.fresh.v3, kept = a.kept.v3;
  } else if (e >= 2 * sides) {
    e -= 2 * sides, which = 3, fresh = a.fresh.u3, kept = a.kept.u3;
  } else if (e >= sides) {
    e -= sides, which = 2, fresh = a.fresh.u1, kept = a.kept.u1;
  }
  kept[e] = fresh[e] = unit_entry(fresh[e], norms[which], kept[e]);
}
RC_HOST_DEVICE int finish_entries(const FilterShape& s) {
  return s.channels * (2 * s.side + s.taps() + 1);
}

RC_HOST_DEVICE float least_norm(const PowerArgs& a, float largest) {
  return 1e-3f * (largest < a.usual ? a.usual : largest);
}

RC_HOST_DEVICE float smaller(float a, float b) {
  return b < a ? b : a;
}
// scale / sigma; sigma is NaN if the weight is.
RC_HOST_DEVICE float factor_of(const float* scale, const float* norms) {
  const float sigma = smaller(norms[0], norms[1]);
  return *scale / (sigma < norms[2] ? norms[2] : sigma);
}

RC_HOST_DEVICE int filter_index(const FilterShape& s, bool channels_last, int o, int i, int t) {
  return channels_last ? (o * s.taps() + t) * s.channels + i : (o * s.channels + i) * s.taps() + t;
}

// The gradient of sigma, spread over its entries: v u^T of the smaller norm, none where that is
// clamped; as the gradient of S is `factor` times that of the filter, plus this.
struct Slope {
  float factor, slope;
  bool mixed;

  RC_HOST_DEVICE Slope(const FilterBackwardArgs& a, float inner)
      : factor(factor_of(a.scale, a.norms)), mixed(a.norms[0] < a.norms[1]) {
    const float sigma = smaller(a.norms[0], a.norms[1]);
    slope = sigma > a.norms[2] ? -(factor * inner) / sigma : 0.0f * inner;
  }
  RC_HOST_DEVICE float at(const FilterBackwardArgs& a, int o, int i, int t, float grad) const {
    const int k = a.shape.side;
    const float outer = mixed ? a.vectors.v1[o * k + t / k] * a.vectors.u1[i * k + t % k]
                              : a.vectors.v3[o] * a.vectors.u3[i * a.shape.taps() + t];
    return factor * grad + slope * outer;
  }
};

// The gradient of the filter. E is its element type.
template <class E>
RC_HOST_DEVICE float gradient_at(const FilterBackwardArgs& a, int k) {
  const float own = a.first * convert<float>(static_cast<const E*>(a.grad)[k]);
  if (!a.other) return own;
  return own + a.second * convert<float>(static_cast<const E*>(a.other)[k]);
}

}  // namespace RC_ISA
}  // namespace robustcore::lipschitz
