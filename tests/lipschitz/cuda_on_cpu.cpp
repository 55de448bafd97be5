// Executes the lipschitz kernels through the shim and compares them with the CPU
// kernels, bit for bit. Prints one line a case; the exit status is the number of cases that differ
// (at most 99).
#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "common/philox.h"
#include "lipschitz/pairs.h"
#include "lipschitz/series.h"
#include "lipschitz/skew.h"
#include "lipschitz/skew_filter.h"
#include "mma_cases.h"
#include "series_block_cases.h"

using namespace robustcore;
using namespace robustcore::lipschitz;

namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kFloat16, DType::kBFloat16};
// 16-aligned memory of n elements; poison shows what nobody wrote.
struct Buffer {
  std::vector<double> words;
  size_t bytes;

  Buffer(int64_t n, DType dtype, unsigned char poison = 0)
      : words(n * size_of(dtype) / 8 + 2), bytes(n * size_of(dtype)) {
    std::memset(words.data(), poison, words.size() * 8);
  }
  void* data() {
    return words.data();
  }
  bool operator==(const Buffer& other) const {
    return std::memcmp(words.data(), other.words.data(), bytes) == 0;
  }
};

// Values in (-2, 2) that exercise rounding, many of them equal in magnitude or zero.
Buffer values(int64_t n, DType dtype, uint64_t seed) {
  Buffer buffer(n, dtype);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t counter[4] = {static_cast<uint32_t>(i), 0, 0, 0};
    uint32_t out[4];
    philox4x32(counter, seed, out);
    float v = static_cast<float>(static_cast<int32_t>(out[0])) * 0x1p-30f;
    if (out[1] % 8 == 0) v = static_cast<float>(static_cast<int>(out[2] % 3)) - 1;
    dispatch(dtype, [&](auto tag) {
      using E = decltype(tag);
      static_cast<E*>(buffer.data())[i] = convert<E>(v);
    });
  }
  return buffer;
}

std::string label(const char* what, DType dtype, int64_t a, int64_t b, int64_t c) {
  return std::string(what) + " dtype " + std::to_string(static_cast<int>(dtype)) + " " +
         std::to_string(a) + "x" + std::to_string(b) + "x" + std::to_string(c);
}

void update_case(DType dtype, int64_t n, int parts) {
  Buffer z = values(n, dtype, 1), a = values(n, dtype, 2), b = values(n, dtype, 3),
         t = values(n, dtype, 4);
  Buffer out[2] = {{n, dtype, 0xCD}, {n, dtype, 0xAB}};
  Buffer total[2] = {{n, dtype, 0xCD}, {n, dtype, 0xAB}};
  for (const bool cuda : {false, true}) {
    UpdateArgs args{n,       dtype, z.data(), nullptr, nullptr, nullptr, out[cuda].data(),
                    nullptr, 0.7,   -1.3,     1.0,     0.9,     0.1};
    if (parts & 1) args.a = a.data();
    if (parts & 2) args.b = b.data();
    if (parts & 4) args.total = t.data(), args.total_out = total[cuda].data();
    if (cuda) {
      update_cuda(args, nullptr);
    } else {
      update_baseline(args, 0, ceil_div(n, kUpdateRun));
    }
  }
  report(label("update", dtype, n, parts, 0),
         out[0] == out[1] && (!(parts & 4) || total[0] == total[1]));
}

void skew_case(DType dtype, int64_t channels, int64_t taps) {
  const int64_t n = channels * channels * taps;
  Buffer weight = values(n, dtype, 5), cpu(n, dtype, 0xCD), gpu(n, dtype, 0xAB);
  SkewArgs args{channels, taps, dtype, weight.data(), cpu.data()};
  skew_baseline(args, 0, skew_units(args));
  args.out = gpu.data();
  skew_cuda(args, nullptr);
  report(label("skew", dtype, channels, taps, 0), cpu == gpu);
}

// The four vectors of a filter, one after another.
Vectors<float> split(Buffer& b, const FilterShape& s) {
  float* u1 = static_cast<float*>(b.data());
  const int sides = s.channels * s.side;
  return {u1, u1 + sides, u1 + 2 * sides, u1 + 2 * sides + s.row()};
}

void power_case(const FilterShape& shape, float size) {
  const int n = shape.channels;
  Buffer weight = values(int64_t{n} * shape.row(), DType::kFloat32, 9);
  for (int64_t i = 0; i < int64_t{n} * shape.row(); ++i) {
    static_cast<float*>(weight.data())[i] *= size;
  }
  const int64_t entries = finish_entries(shape);
  Buffer kept[2] = {values(entries, DType::kFloat32, 10), values(entries, DType::kFloat32, 10)};
  Buffer fresh[2] = {{entries, DType::kFloat32, 0xCD}, {entries, DType::kFloat32, 0xAB}};
  Buffer squares[2] = {{4 * n, DType::kFloat64, 0xCD}, {4 * n, DType::kFloat64, 0xAB}};
  Buffer largest[2] = {{n, DType::kFloat32, 0xCD}, {n, DType::kFloat32, 0xAB}};
  Buffer norms[2] = {{3, DType::kFloat32, 0xCD}, {3, DType::kFloat32, 0xAB}};
  for (const bool cuda : {false, true}) {
    PowerArgs args{shape,
                   static_cast<const float*>(weight.data()),
                   split(kept[cuda], shape),
                   split(fresh[cuda], shape),
                   static_cast<double*>(squares[cuda].data()),
                   static_cast<float*>(largest[cuda].data()),
                   static_cast<float*>(norms[cuda].data()),
                   0.01f,
                   false};
    if (cuda) {
      power_cuda(args, nullptr);
      continue;
    }
    std::vector<float> scratch(3 * shape.row());
    for (const bool second : {false, true}) {
      args.second = second;
      power_half_baseline(args, scratch.data(), 0, filter_units(shape));
    }
    power_finish_baseline(args, 0, 1);
  }
  report(label("power", DType::kFloat32, n, shape.side, size > 0),
         kept[0] == kept[1] && fresh[0] == fresh[1] && squares[0] == squares[1] &&
             norms[0] == norms[1]);
}

void filter_case(const FilterShape& shape, DType dtype, bool channels_last, bool two) {
  const int64_t count = int64_t{shape.channels} * shape.row();
  Buffer weight = values(count, DType::kFloat32, 11);
  Buffer vectors = values(finish_entries(shape), DType::kFloat32, 12);
  float scale = 0.7f, norms[3] = {3.0f, two ? 2.5f : 3.5f, 1e-3f};
  Buffer out[2] = {{count, dtype, 0xCD}, {count, dtype, 0xAB}};
  Buffer inner[2] = {{shape.channels, DType::kFloat32, 0xCD},
                     {shape.channels, DType::kFloat32, 0xAB}};
  Buffer back[2] = {{count, DType::kFloat32, 0xCD}, {count, DType::kFloat32, 0xAB}};
  Buffer grad = values(count, dtype, 13), other = values(count, dtype, 14);
  const auto* w = static_cast<const float*>(weight.data());
  const Vectors<float> v = split(vectors, shape);
  for (const bool cuda : {false, true}) {
    const FilterArgs args{shape, w, &scale, norms, out[cuda].data(), dtype, channels_last};
    const FilterBackwardArgs backward{shape,
                                      grad.data(),
                                      two ? other.data() : nullptr,
                                      dtype,
                                      channels_last,
                                      0.3f,
                                      1.7f,
                                      w,
                                      &scale,
                                      norms,
                                      {v.u1, v.v1, v.u3, v.v3},
                                      static_cast<float*>(inner[cuda].data()),
                                      static_cast<float*>(back[cuda].data())};
    if (cuda) {
      filter_cuda(args, nullptr);
      filter_backward_cuda(backward, nullptr);
    } else {
      std::vector<float> scratch(2 * shape.row());
      filter_baseline(args, 0, filter_units(shape));
      filter_inner_baseline(backward, scratch.data(), 0, filter_units(shape));
      filter_backward_baseline(backward, 0, filter_units(shape));
    }
  }
  const auto name = [&](const char* what) {
    return label(what, dtype, shape.channels, shape.side, 2 * two + channels_last);
  };
  report(name("filter"), out[0] == out[1]);
  report(name("filter backward"), inner[0] == inner[1] && back[0] == back[1]);
}

void pair_cases(const PairShape& shape) {
  const auto name = [&](const char* what) {
    return label(what, shape.dtype, shape.rows, shape.channels, shape.pixels);
  };
  const int64_t pairs = shape.rows * shape.run(), units = PairTiling(shape).units(shape);
  Buffer x = values(2 * pairs, shape.dtype, 6);
  Buffer cpu(2 * pairs, shape.dtype, 0xCD), gpu(2 * pairs, shape.dtype, 0xAB);
  std::vector<uint8_t> bits[2];
  for (auto& b : bits) b.assign(shape.rows * shape.bytes(), 0x55);
  MaxMinArgs maxmin{shape, x.data(), cpu.data(), bits[0].data()};
  maxmin_baseline(maxmin, 0, units);
  maxmin.out = gpu.data(), maxmin.bits = bits[1].data();
  maxmin_cuda(maxmin, nullptr);
  report(name("maxmin"), cpu == gpu && bits[0] == bits[1]);

  SwapArgs swap{shape, gpu.data(), bits[0].data(), cpu.data()};
  swap_baseline(swap, 0, units);
  report(name("swap restores"), cpu == x);
  Buffer swapped(2 * pairs, shape.dtype, 0xAB);
  swap.out = swapped.data();
  swap_cuda(swap, nullptr);
  report(name("swap"), cpu == swapped);

  const DType wide = shape.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  for (const Map map : {Map::kHouseholder, Map::kHouseholder2, Map::kProjection}) {
    dispatch_map(map, [&](auto m) {
      Buffer table = values(m.kEntries * shape.channels, wide, 7);
      Buffer grad = values(m.kOutputs * pairs, shape.dtype, 8);
      Buffer out[2] = {{m.kOutputs * pairs, shape.dtype, 0xCD},
                       {m.kOutputs * pairs, shape.dtype, 0xAB}};
      Buffer grad_x[2] = {{2 * pairs, shape.dtype, 0xCD}, {2 * pairs, shape.dtype, 0xAB}};
      Buffer angle[2] = {{m.kAngles * pairs, shape.dtype, 0xCD},
                         {m.kAngles * pairs, shape.dtype, 0xAB}};
      for (const bool cuda : {false, true}) {
        const MapArgs args{map, shape, x.data(), table.data(), out[cuda].data()};
        const MapBackwardArgs back{map,
                                   shape,
                                   x.data(),
                                   table.data(),
                                   grad.data(),
                                   grad_x[cuda].data(),
                                   angle[cuda].data()};
        if (cuda) {
          pair_map_cuda(args, nullptr);
          pair_map_backward_cuda(back, nullptr);
        } else {
          pair_map_baseline(args, 0, units);
          pair_map_backward_baseline(back, 0, units);
        }
      }
      const std::string which = " map " + std::to_string(static_cast<int>(map));
      report(name("forward") + which, out[0] == out[1]);
      report(name("backward") + which, grad_x[0] == grad_x[1] && angle[0] == angle[1]);
    });
  }
}

}  // namespace

int main() {
  mma_cases();
  series_block_cases();
  for (const DType dtype : kDTypes) {
    for (const int parts : {0, 1, 6, 7}) {
      update_case(dtype, 7, parts);
      update_case(dtype, 5000, parts);
    }
    skew_case(dtype, 3, 9);
    skew_case(dtype, 19, 25);
    pair_cases({2, 3, 5, dtype});
    pair_cases({70, 9, 1, dtype});
    pair_cases({1, 2, 4500, dtype});
  }
  for (const FilterShape shape : {FilterShape{1, 1}, {5, 3}, {37, 3}, {33, 5}, {70, 1}, {9, 7}}) {
    power_case(shape, shape.side == 5 ? 1e30f : 1.0f);
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const bool channels_last : {false, true}) {
        for (const bool two : {false, true}) filter_case(shape, dtype, channels_last, two);
      }
    }
  }
  power_case({19, 3}, 0.0f);
  power_case({19, 3}, 1e-30f);
  filter_case({240, 3}, DType::kFloat32, false, true);  // a block a row of the inner product
  return finish();
}
