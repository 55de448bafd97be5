// Batch normalisation's cases of the comparison: the kinds of planes and of units, both layouts.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "cases.h"
#include "density/batch_norm.h"

namespace robustcore::density {

struct BatchNormShape {
  int64_t images, channels, plane;
  bool channels_last = false;
  int shift = 0;       // by which tensors begin off the alignment
  bool plain = false;  // no weight, nothing to add
};

struct BatchNormInputs {
  std::vector<float> x, grad, v, more, weight, mean, inverse;

  explicit BatchNormInputs(const BatchNormShape& s) {
    const int64_t size = s.images * s.channels * s.plane + s.shift;
    x = random_values<float>(size, 1), grad = random_values<float>(size, 2);
    v = random_values<float>(size, 3), more = random_values<float>(size, 4);
    weight = random_values<float>(s.channels, 5), mean = random_values<float>(s.channels, 6);
    for (int64_t c = 0; c < s.channels; ++c) inverse.push_back(0.25f + 0.01f * (c % 7));
  }
};

// One device's results of both passes, from its own poison.
struct BatchNormResults {
  std::vector<float> d_x, d_grad, second_d_x, d_weight, d_bias, second_d_weight, factors;
  std::vector<double> sums;

  BatchNormResults(const BatchNormShape& s, const BatchNormArgs& args, float poison)
      : d_x(s.images * s.channels * s.plane + s.shift, poison),
        d_grad(d_x),
        second_d_x(d_x),
        d_weight(s.channels, poison),
        d_bias(d_weight),
        second_d_weight(d_weight),
        factors(BatchNormArgs::kMostFactors * s.channels, poison),
        sums(args.units() * BatchNormArgs::kMostSums * (s.channels_last ? s.channels : 1)) {}

  bool agrees(const BatchNormResults& o, int shift) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b, int from) {
      return std::memcmp(a.data() + from, b.data() + from, (a.size() - from) * sizeof(float)) == 0;
    };
    return same(d_x, o.d_x, shift) && same(d_grad, o.d_grad, shift) &&
           same(second_d_x, o.second_d_x, shift) && same(d_weight, o.d_weight, 0) &&
           same(d_bias, o.d_bias, 0) && same(second_d_weight, o.second_d_weight, 0);
  }
};

inline void batch_norm_on_cpu(const BatchNormArgs& args) {
  batch_norm_sums_baseline(args, 0, args.units());
  for_pass(args, [&](auto pass, auto) {
    if constexpr (sums_of(pass()) > 1 && pass() != BatchNormPass::kNormalize) {
      for (int64_t c = 0; c < args.channels; ++c) {
        batch_norm_finish<float, pass()>(args, args.chunks(), c, true, [&](int k, double factor) {
          static_cast<float*>(args.factors)[k * args.channels + c] = static_cast<float>(factor);
        });
      }
    }
  });
  batch_norm_write_baseline(args, 0, args.units());
}

inline BatchNormResults batch_norm_run(const BatchNormShape& s, const BatchNormInputs& in,
                                       bool cuda) {
  BatchNormArgs args{};
  args.images = s.images, args.channels = s.channels, args.plane = s.plane;
  args.channels_last = s.channels_last;
  args.dtype = DType::kFloat32;
  args.x = in.x.data() + s.shift, args.grad = in.grad.data() + s.shift;
  args.mean = const_cast<float*>(in.mean.data());
  args.inverse = const_cast<float*>(in.inverse.data());
  if (!s.plain) args.weight = in.weight.data();
  BatchNormResults out(s, args, cuda ? 1e30f : -1e30f);
  args.sums = out.sums.data(), args.factors = out.factors.data();
  args.d_weight = out.d_weight.data(), args.d_bias = out.d_bias.data();

  args.pass = BatchNormPass::kBackward;
  if (!s.plain) args.more = in.more.data() + s.shift;
  args.d_x = out.d_x.data() + s.shift;
  cuda ? batch_norm_cuda(args, nullptr) : batch_norm_on_cpu(args);

  args.pass = BatchNormPass::kDoubleBackward;
  args.more = nullptr;
  args.v = in.v.data() + s.shift;
  args.d_grad = out.d_grad.data() + s.shift, args.d_x = out.second_d_x.data() + s.shift;
  args.second_d_weight = out.second_d_weight.data();
  cuda ? batch_norm_cuda(args, nullptr) : batch_norm_on_cpu(args);
  return out;
}

inline void batch_norm_cases() {
  for (const BatchNormShape& s : std::initializer_list<BatchNormShape>{
           {5, 3, 49},                    // small planes that 16 bytes do not divide
           {200, 2, 16},                  // two runs of them
           {130, 3, 64, false, 1},        // off the alignment
           {600, 1, 64, false, 0, true},  // too many images for one unit
           {9, 2, 300},                   // several images a run
           {5, 2, 1500},                  // a run begins with the end of the image before
           {25, 1, 1536},                 // two units
           {2, 2, 2048},                  // whole segments
           {2, 1, 40001},                 // more runs than a block takes at a time
           {66, 1, 32768 + 40},           // more units than a block finishes
           {5, 3, 1, true},
           {300, 5, 1, true},             // two runs
           {1000, 64, 1, true},           // two units
           {150, 136, 1, true, 1, true},  // two tiles, off the alignment
           {150, 130, 1, true},
           {70000, 1, 1, true},   // more runs than a block takes at a time
           {4200, 512, 1, true},  // more units than a block finishes
       }) {
    const BatchNormInputs in(s);
    report("batch_norm " + std::to_string(s.images) + " x " + std::to_string(s.channels) + " x " +
               std::to_string(s.plane) + (s.channels_last ? " channels last" : "") +
               (s.plain ? " plain" : "") + (s.shift ? " shifted" : ""),
           batch_norm_run(s, in, false).agrees(batch_norm_run(s, in, true), s.shift));
  }
}

}  // namespace robustcore::density
