// The series on the tensor cores, as the shim runs it, against the recurrence in double; and
// against itself with other tiles and other numbers of images a block, to the bit.
#pragma once

#include <cmath>

#include "cases.h"
#include "lipschitz/series_block.h"

namespace robustcore::lipschitz {

template <class E>
struct BlockCase {
  BlockShape shape;
  int64_t images;
  bool summed, keep;
  std::vector<E> x, filter;
  BlockSeriesArgs args{};

  BlockCase(int32_t channels, int32_t height, int32_t width, int32_t degree, int64_t images_,
            bool summed_, bool keep_)
      : shape{channels, height, width, degree, sizeof(E)},
        images(images_),
        summed(summed_),
        keep(keep_),
        x(random_values<E>(images * image(), 1)),
        filter(random_values<E>(9 * channels * channels, 2)) {
    // About as large as a normalised filter: its values are in (-8, 8).
    const float scale = 0.2f / std::sqrt(9.0f * channels);
    for (E& v : filter) v = convert<E>(scale * to_float(v));
    args.dtype = kType<E>;
    args.images = images, args.shape = shape;
    args.x = x.data(), args.filter = filter.data();
    args.summed = summed, args.map_step = images * image();
    for (int s = 0; s < degree; ++s) {
      args.alpha[s] = s ? -1.5f : -0.75f;
      args.beta[s] = summed ? float(s == 1) : 0.3f + 0.1f * s;
      args.gamma[s] = s > 1 ? 1.0f : 0.0f;
    }
    for (int k = 0; k <= degree; ++k) args.delta[k] = 0.9f - 0.2f * k;
  }
  int64_t image() const {
    return int64_t{1} * shape.channels * shape.height * shape.width;
  }

  // y, and after it the maps.
  std::vector<E> run(BlockPlan plan) {
    std::vector<E> out(images * image() * (keep ? shape.degree : 1));
    args.y = out.data();
    args.maps = keep ? out.data() + images * image() : nullptr;
    series_block_cuda_as(args, plan, nullptr);
    return out;
  }

  // L in, in double.
  std::vector<double> convolved(const std::vector<double>& in) const {
    const int c = shape.channels, h = shape.height, w = shape.width;
    std::vector<double> out(in.size());
    for (int64_t p = 0; p < images * h * w; ++p) {
      const int64_t y = p / w % h, column = p % w;
      for (int o = 0; o < c; ++o) {
        for (int tap = 0; tap < 9; ++tap) {
          const int64_t v = y + tap / 3 - 1, u = column + tap % 3 - 1;
          if (v < 0 || v >= h || u < 0 || u >= w) continue;
          const double* from = &in[(p + (v - y) * w + u - column) * c];
          const E* row = &filter[(o * 9 + tap) * c];
          for (int i = 0; i < c; ++i) out[p * c + o] += from[i] * to_float(row[i]);
        }
      }
    }
    return out;
  }

  std::vector<double> expected() const {
    std::vector<double> start(x.size()), before(x.size()), sum(x.size()), result;
    for (size_t i = 0; i < x.size(); ++i)
      start[i] = to_float(x[i]), sum[i] = args.delta[0] * start[i];
    std::vector<double> now = start;
    for (int s = 0; s < shape.degree; ++s) {
      std::vector<double> next = convolved(now);
      for (size_t i = 0; i < x.size(); ++i) {
        next[i] = args.alpha[s] * next[i] + args.beta[s] * start[i] + args.gamma[s] * before[i];
        sum[i] += args.delta[s + 1] * next[i];
      }
      if (keep && s + 1 < shape.degree) result.insert(result.end(), next.begin(), next.end());
      before = now, now = next;
    }
    const std::vector<double>& y = summed ? sum : now;
    result.insert(result.begin(), y.begin(), y.end());
    return result;
  }
};

template <class E>
bool is_near(const std::vector<E>& got, const std::vector<double>& want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error = std::max(error, std::abs(to_float(got[i]) - want[i]));
    size = std::max(size, std::abs(want[i]));
    if (!(std::abs(to_float(got[i])) < INFINITY)) return false;
  }
  return got.size() == want.size() && error <= (sizeof(E) == 4 ? 1e-6 : 2e-2) * size;
}

// Whole images one a block, then as the plan has it for a tenth of the memory or more images.
template <class E>
void block_case(int32_t channels, int32_t height, int32_t width, int32_t degree, int64_t images,
                bool summed, bool keep) {
  BlockCase<E> c(channels, height, width, degree, images, summed, keep);
  const std::string name = "block series dtype " + std::to_string(static_cast<int>(kType<E>)) +
                           " " + std::to_string(channels) + "x" + std::to_string(height) + "x" +
                           std::to_string(width) + " degree " + std::to_string(degree);
  constexpr int64_t kLimit = 227 << 10;
  const BlockPlan whole = block_plan(c.shape, kLimit, images, images);
  const std::vector<E> alone = c.run(whole);
  report(name, whole.tiles() == 1 && is_near(alone, c.expected()));
  const auto same = [&](const BlockPlan& plan) {
    const std::vector<E> other = c.run(plan);
    return std::memcmp(alone.data(), other.data(), alone.size() * sizeof(E)) == 0;
  };
  const BlockPlan several = block_plan(c.shape, kLimit, images, 1);
  if (several.images > 1) report(name + ", images together", same(several));
  const BlockPlan tiled = block_plan(c.shape, whole.shared() - 1, images, images);
  if (tiled.images) report(name + ", tiles", tiled.tiles() > 1 && same(tiled));
}

inline void series_block_cases() {
  block_case<float>(32, 5, 7, 3, 3, false, true);
  block_case<float>(32, 13, 9, 2, 1, true, true);
  block_case<float>(64, 3, 4, 2, 1, true, false);
  block_case<float>(128, 1, 3, 1, 2, false, false);
  block_case<BFloat16>(32, 19, 5, 3, 1, true, true);
  block_case<BFloat16>(64, 5, 5, 3, 3, false, true);
  block_case<BFloat16>(128, 3, 5, 2, 1, true, true);
}

}  // namespace robustcore::lipschitz
