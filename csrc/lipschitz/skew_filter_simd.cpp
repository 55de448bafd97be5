#include "common/math.h"
#include "common/rows_simd.h"
#include "lipschitz/skew_filter.h"

namespace robustcore::lipschitz {
inline namespace RC_ISA {
namespace {

using L = Lanes;

// Row r of S, taps by channels.
RC_HOST_DEVICE void load_row(const float* weight, const FilterShape& shape, int r, float* s) {
  const int n = shape.channels, taps = shape.taps();
  for (int j = 0; j < n; ++j) {
    const float* own = weight + (r * n + j) * taps;
    const float* other = weight + (j * n + r) * taps + taps - 1;
    for (int t = 0; t < taps; ++t) s[t * n + j] = (own[t] - other[-t]) * 0.5f;
  }
}

float product(const float* a, const float* b, int64_t count) {
  return segment_sum<L>(count, [&](int64_t i, int n, typename L::Float sum) {
    return L::fma(load<L>(a + i, n, 0.0f), load<L>(b + i, n, 0.0f), sum);
  });
}

float norm_of(const PowerArgs& args, int which) {
  const int n = args.shape.channels;
  const double* squares = args.squares + which * n;
  return static_cast<float>(::sqrt(
      segment_sum<ScalarDouble>(n, [&](int64_t r, int, double sum) { return sum + squares[r]; })));
}

float largest_of(const float* data, int64_t count) {
  return segment_max<L>(count, 0.0f,
                        [&](int64_t i, int n) { return abs<L>(load<L>(data + i, n, 0.0f)); });
}

void fill(const Factor& factor, int n, float* to) {
  for (int j = 0; j < n; ++j) to[j] = factor.at(j);
}

int64_t end_row(const FilterShape& shape, int64_t end) {
  return end * kFilterRun < shape.channels ? end * kFilterRun : shape.channels;
}

// Calls body(o, i) for rows o of units [begin, end) in square blocks: the transpose shares lines.
template <class Body>
RC_HOST_DEVICE void for_pairs(const FilterShape& shape, int64_t begin, int64_t end,
                              const Body& body) {
  const int n = shape.channels, run = static_cast<int>(kFilterRun);
  for (int o0 = static_cast<int>(begin) * run; o0 < end_row(shape, end); o0 += run) {
    for (int i0 = 0; i0 < n; i0 += run) {
      for (int o = o0; o < o0 + run && o < n; ++o) {
        for (int i = i0; i < i0 + run && i < n; ++i) body(o, i);
      }
    }
  }
}

// From one tap to the next.
RC_HOST_DEVICE int tap_step(const FilterShape& shape, bool channels_last) {
  return channels_last ? shape.channels : 1;
}

}  // namespace
}  // namespace RC_ISA

// scratch: [3, taps, channels]: of a row of S, and of what its taps are multiplied with.
void RC_VARIANT(power_half)(const PowerArgs& args, float* scratch, int64_t begin, int64_t end) {
  constexpr int kMaxTaps = FilterShape::kMaxSide * FilterShape::kMaxSide;
  const FilterShape& shape = args.shape;
  const int n = shape.channels, taps = shape.taps();
  float *s = scratch, *a = s + taps * n, *b = a + taps * n;
  const float norms[2] = {args.second ? norm_of(args, 0) : 1.0f,
                          args.second ? norm_of(args, 1) : 1.0f};
  for (int t = 0; t < taps; ++t) {
    fill(mixed_factor(args, t, norms[0]), n, a + t * n);
    fill(flat_factor(args, t, norms[1]), n, b + t * n);
  }
  for (int64_t row = begin * kFilterRun; row < end_row(shape, end); ++row) {
    const int r = static_cast<int>(row);
    load_row(args.weight, shape, r, s);
    float mixed[kMaxTaps], flat[kMaxTaps];
    for (int t = 0; t < taps; ++t) {
      mixed[t] = product(s + t * n, a + t * n, n);
      flat[t] = product(s + t * n, b + t * n, n);
    }
    write_row(args, r, mixed, flat);
    if (!args.second) {
      args.largest[r] = largest_of(args.weight + row * shape.row(), shape.row());
    }
  }
}

void RC_VARIANT(power_finish)(const PowerArgs& args, int64_t, int64_t) {
  const float norms[4] = {norm_of(args, 0), norm_of(args, 1), norm_of(args, 2), norm_of(args, 3)};
  args.norms[0] = norms[2], args.norms[1] = norms[3];
  args.norms[2] = least_norm(args, largest_of(args.largest, args.shape.channels));
  for (int e = 0; e < finish_entries(args.shape); ++e) finish_entry(args, norms, e);
}

void RC_VARIANT(filter)(const FilterArgs& args, int64_t begin, int64_t end) {
  const FilterShape& shape = args.shape;
  const int taps = shape.taps(), step = tap_step(shape, args.channels_last);
  const float factor = factor_of(args.scale, args.norms);
  dispatch_narrow<float>(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    for_pairs(shape, begin, end, [&](int o, int i) {
      E* out = static_cast<E*>(args.out) + filter_index(shape, args.channels_last, o, i, 0);
      for (int t = 0; t < taps; ++t) {
        out[t * step] = convert<E>(skew_at(args.weight, shape, o, i, t) * factor);
      }
    });
  });
}

// scratch: [2, taps, channels]
void RC_VARIANT(filter_inner)(const FilterBackwardArgs& args, float* scratch, int64_t begin,
                              int64_t end) {
  const FilterShape& shape = args.shape;
  const int n = shape.channels, taps = shape.taps(), step = tap_step(shape, args.channels_last);
  float *s = scratch, *g = s + shape.row();
  for (int64_t row = begin * kFilterRun; row < end_row(shape, end); ++row) {
    const int r = static_cast<int>(row);
    load_row(args.weight, shape, r, s);
    dispatch_narrow<float>(args.dtype, [&](auto tag) {
      for (int j = 0; j < n; ++j) {
        const int k = filter_index(shape, args.channels_last, r, j, 0);
        for (int t = 0; t < taps; ++t) {
          g[t * n + j] = gradient_at<decltype(tag)>(args, k + t * step);
        }
      }
    });
    float inner = 0;
    for (int t = 0; t < taps; ++t) inner += product(g + t * n, s + t * n, n);
    args.inner[r] = inner;
  }
}

void RC_VARIANT(filter_backward)(const FilterBackwardArgs& args, int64_t begin, int64_t end) {
  const FilterShape& shape = args.shape;
  const int taps = shape.taps(), step = tap_step(shape, args.channels_last);
  const double inner = segment_sum<ScalarDouble>(
      shape.channels, [&](int64_t r, int, double sum) { return sum + args.inner[r]; });
  const Slope slope(args, static_cast<float>(inner));
  dispatch_narrow<float>(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    for_pairs(shape, begin, end, [&](int o, int i) {
      const int p = filter_index(shape, args.channels_last, o, i, 0);
      const int q = filter_index(shape, args.channels_last, i, o, 0);
      float* out = args.out + filter_index(shape, false, o, i, 0);
      for (int t = 0; t < taps; ++t) {
        const int back = taps - 1 - t;
        out[t] = (slope.at(args, o, i, t, gradient_at<E>(args, p + t * step)) -
                  slope.at(args, i, o, back, gradient_at<E>(args, q + back * step))) *
                 0.5f;
      }
    });
  });
}

}  // namespace robustcore::lipschitz
