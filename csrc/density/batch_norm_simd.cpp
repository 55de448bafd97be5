#include "common/rows_simd.h"
#include "density/batch_norm.h"

namespace robustcore::density {
inline namespace RC_ISA {
namespace {

using Pass = BatchNormPass;

// n lanes at an offset, of one channel or, with the channels last, of as many channels.
template <class L, Pass kPass>
class At {
 public:
  using T = typename L::Real;
  using Float = typename L::Float;

  explicit At(const BatchNormArgs& args) : args_(args) {}

  // Adds to accumulators sum(0), sum(1), ...; lanes past n add 0. `pad` is the mean, where one
  // channel is all there is.
  template <class Sum>
  RC_HOST_DEVICE void add(int64_t at, int n, Float mean, T pad, const Sum& sum) const {
    constexpr bool mean_only = kPass == Pass::kMean, twice = kPass == Pass::kDoubleBackward;
    const Float x = load<L>(in(args_.x) + at, n, pad), c = mean_only ? x : x - mean;
    Float grad{}, v{};
    if constexpr (twice || kPass == Pass::kBackward) grad = load<L>(in(args_.grad) + at, n, T(0));
    if constexpr (twice) v = load<L>(in(args_.v) + at, n, T(0));
    batch_norm_add<L, kPass>(c, grad, v, sum);
  }

  RC_HOST_DEVICE void write(int64_t at, int n, Float mean,
                            const Float (&f)[factors_of(kPass)]) const {
    const Float c = load<L>(in(args_.x) + at, n, T(0)) - mean;
    if constexpr (kPass == Pass::kNormalize) {
      put(args_.y, at, n, L::fma(f[0], c, f[1]));
    } else {
      const Float g = load<L>(in(args_.grad) + at, n, T(0));
      if constexpr (kPass == Pass::kBackward) {
        Float d_x = batch_norm_d_x<L>(c, g, f);
        if (args_.more) d_x = d_x + load<L>(in(args_.more) + at, n, T(0));
        put(args_.d_x, at, n, d_x);
      } else {
        const Float v = load<L>(in(args_.v) + at, n, T(0));
        put(args_.d_grad, at, n, batch_norm_d_x<L>(c, v, f));
        put(args_.d_x, at, n, batch_norm_second_d_x<L>(c, g, v, f));
      }
    }
  }

 private:
  static RC_HOST_DEVICE const T* in(const void* data) {
    return static_cast<const T*>(data);
  }
  static RC_HOST_DEVICE void put(void* data, int64_t at, int n, Float value) {
    store<L>(static_cast<T*>(data) + at, value, n);
  }

  const BatchNormArgs& args_;
};

// Calls body(unit, channel, first, last) with the images [first, last) of each unit.
template <class Body>
RC_HOST_DEVICE void for_units(const BatchNormArgs& args, int64_t begin, int64_t end,
                              const Body& body) {
  const int64_t chunks = args.chunks(), step = args.images_per_unit();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t first = unit % chunks * step;
    body(unit, unit / chunks, first, first + step < args.images ? first + step : args.images);
  }
}

template <class L, Pass kPass>
void sum_planes(const BatchNormArgs& args, int64_t begin, int64_t end) {
  using T = typename L::Real;
  using Float = typename L::Float;
  constexpr int kCount = sums_of(kPass);
  const At<L, kPass> elements(args);
  for_units(args, begin, end, [&](int64_t unit, int64_t channel, int64_t first, int64_t last) {
    const T mean = kPass == Pass::kMean ? T(0) : static_cast<const T*>(args.mean)[channel];
    const Float means = L::splat(mean);
    double total[kCount][kSums] = {};
    Float sums[kCount][kWays<L>];
    const auto clear = [&] {
      for (auto& ways : sums) {
        for (Float& way : ways) way = L::splat(T(0));
      }
    };
    const auto flush = [&] {
      for (int q = 0; q < kCount; ++q) {
        T a[kSums];
        for (int way = 0; way < kWays<L>; ++way) L::store(a + way * L::kFloats, sums[q][way]);
        for (int i = 0; i < kSums; ++i) total[q][i] += a[i];
      }
      clear();
    };
    clear();
    int64_t held = 0;  // elements in the accumulators
    for (int64_t image = first; image < last; ++image) {
      const int64_t base = (image * args.channels + channel) * args.plane;
      for (int64_t from = 0; from < args.plane; from += kSegment) {
        const int64_t left = args.plane - from, count = left < kSegment ? left : kSegment;
        for_lanes<L>(count, [&](int64_t i, int n, int way) {
          elements.add(base + from + i, n, means, mean,
                       [&](int q) -> Float& { return sums[q][way]; });
        });
        held += count;
        if (held < kSegment) continue;
        flush();
        held = 0;
      }
    }
    flush();
    for (int q = 0; q < kCount; ++q) {
      args.sums[unit * BatchNormArgs::kMostSums + q] = tree(total[q]);
    }
  });
}

constexpr int kTogether = 16;  // channels of small planes

// Planes of a few vectors lie far apart, and prefetchers do not see them coming. So it is one image
// after another here, with the planes of neighbouring channels in it; accumulators are in memory.
template <class L, Pass kPass>
void sum_small_planes(const BatchNormArgs& args, int64_t begin, int64_t end) {
  using T = typename L::Real;
  using Float = typename L::Float;
  constexpr int kCount = sums_of(kPass);
  constexpr int64_t kImagesRun = BatchNormArgs::kImagesRun;
  const At<L, kPass> elements(args);
  for (int64_t first = begin; first < end; first += kTogether) {
    const int together = static_cast<int>(end - first < kTogether ? end - first : kTogether);
    T means[kTogether] = {};
    if constexpr (kPass != Pass::kMean) {
      for (int c = 0; c < together; ++c) means[c] = static_cast<const T*>(args.mean)[first + c];
    }
    double total[kTogether][kCount] = {};
    for (int64_t run = 0; run < args.images; run += kImagesRun) {
      const int64_t last = run + kImagesRun < args.images ? run + kImagesRun : args.images;
      Float sums[kTogether][kCount][kWays<L>];
      for (auto& of_channel : sums) {
        for (auto& ways : of_channel) {
          for (Float& way : ways) way = L::splat(T(0));
        }
      }
      for (int64_t image = run; image < last; ++image) {
        int64_t base = (image * args.channels + first) * args.plane;
        for (int c = 0; c < together; ++c, base += args.plane) {
          const Float mean = L::splat(means[c]);
          for_lanes<L>(args.plane, [&](int64_t i, int n, int way) {
            elements.add(base + i, n, mean, means[c],
                         [&](int q) -> Float& { return sums[c][q][way]; });
          });
        }
      }
      for (int c = 0; c < together; ++c) {
        for (int q = 0; q < kCount; ++q) total[c][q] += lanes_sum<L>(sums[c][q]);
      }
    }
    for (int c = 0; c < together; ++c) {
      for (int q = 0; q < kCount; ++q) {
        args.sums[(first + c) * BatchNormArgs::kMostSums + q] = total[c][q];
      }
    }
  }
}

template <class L, Pass kPass>
void write_planes(const BatchNormArgs& args, int64_t begin, int64_t end) {
  using T = typename L::Real;
  using Float = typename L::Float;
  const At<L, kPass> elements(args);
  const T* const means = static_cast<const T*>(args.mean);
  const T* const factors = static_cast<const T*>(args.factors);
  const auto write = [&](int64_t image, int64_t channel) {
    Float f[factors_of(kPass)];
    const T* factor = factors + channel;
    for (Float& each : f) each = L::splat(*factor), factor += args.channels;
    const Float mean = L::splat(means[channel]);
    const int64_t base = (image * args.channels + channel) * args.plane;
    for_lanes<L>(args.plane, [&](int64_t i, int n, int) { elements.write(base + i, n, mean, f); });
  };
  if (args.small_planes()) {
    for (int64_t image = 0; image < args.images; ++image) {
      for (int64_t channel = begin; channel < end; ++channel) write(image, channel);
    }
    return;
  }
  for_units(args, begin, end, [&](int64_t, int64_t channel, int64_t first, int64_t last) {
    for (int64_t image = first; image < last; ++image) write(image, channel);
  });
}

template <class L, Pass kPass>
void sum_rows(const BatchNormArgs& args, int64_t begin, int64_t end) {
  using T = typename L::Real;
  using Float = typename L::Float;
  constexpr int kCount = sums_of(kPass), kRowWays = BatchNormArgs::kRowWays;
  constexpr int64_t kRowRun = BatchNormArgs::kRowRun;
  const At<L, kPass> elements(args);
  for_units(args, begin, end, [&](int64_t unit, int64_t, int64_t first, int64_t last) {
    for (int64_t c = 0; c < args.channels; c += L::kFloats) {
      const int64_t left = args.channels - c;
      const int n = static_cast<int>(left < L::kFloats ? left : L::kFloats);
      const Float mean = kPass == Pass::kMean
                             ? L::splat(T(0))
                             : load<L>(static_cast<const T*>(args.mean) + c, n, T(0));
      double total[kCount][L::kFloats] = {};
      for (int64_t run = first; run < last; run += kRowRun) {
        const int64_t end_of_run = run + kRowRun < last ? run + kRowRun : last;
        Float sums[kCount][kRowWays];
        for (auto& ways : sums) {
          for (Float& way : ways) way = L::splat(T(0));
        }
        const auto add = [&](int64_t row, int way) {
          elements.add(row * args.channels + c, n, mean, T(0),
                       [&](int q) -> Float& { return sums[q][way]; });
        };
        int64_t row = run;
        for (; row + kRowWays <= end_of_run; row += kRowWays) {
#pragma GCC unroll 4
          for (int way = 0; way < kRowWays; ++way) add(row + way, way);
        }
#pragma GCC unroll 4
        for (int way = 0; way < kRowWays; ++way) {
          if (row + way < end_of_run) add(row + way, way);
        }
        for (int q = 0; q < kCount; ++q) {
          T a[L::kFloats];
          L::store(a, (sums[q][0] + sums[q][1]) + (sums[q][2] + sums[q][3]));
          for (int i = 0; i < L::kFloats; ++i) total[q][i] += a[i];
        }
      }
      for (int q = 0; q < kCount; ++q) {
        double* to = args.sums + (unit * BatchNormArgs::kMostSums + q) * args.channels + c;
        for (int i = 0; i < n; ++i) to[i] = total[q][i];
      }
    }
  });
}

template <class L, Pass kPass>
void write_rows(const BatchNormArgs& args, int64_t begin, int64_t end) {
  using T = typename L::Real;
  using Float = typename L::Float;
  const At<L, kPass> elements(args);
  for_units(args, begin, end, [&](int64_t, int64_t, int64_t first, int64_t last) {
    for (int64_t c = 0; c < args.channels; c += L::kFloats) {
      const int64_t left = args.channels - c;
      const int n = static_cast<int>(left < L::kFloats ? left : L::kFloats);
      const Float mean = load<L>(static_cast<const T*>(args.mean) + c, n, T(0));
      Float f[factors_of(kPass)];
      const T* factor = static_cast<const T*>(args.factors) + c;
      for (Float& each : f) each = load<L>(factor, n, T(0)), factor += args.channels;
      for (int64_t row = first; row < last; ++row) {
        elements.write(row * args.channels + c, n, mean, f);
      }
    }
  });
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(batch_norm_sums)(const BatchNormArgs& args, int64_t begin, int64_t end) {
  for_pass(args, [&](auto pass, auto tag) {
    using L = LanesOf<decltype(tag)>;
    (args.channels_last    ? sum_rows<L, pass()>
     : args.small_planes() ? sum_small_planes<L, pass()>
                           : sum_planes<L, pass()>)(args, begin, end);
  });
}

void RC_VARIANT(batch_norm_write)(const BatchNormArgs& args, int64_t begin, int64_t end) {
  for_pass(args, [&](auto pass, auto tag) {
    using L = LanesOf<decltype(tag)>;
    if constexpr (pass() != Pass::kMean) {
      (args.channels_last ? write_rows<L, pass()> : write_planes<L, pass()>)(args, begin, end);
    }
  });
}

}  // namespace robustcore::density
