// What the kernels of batch normalisation share: four elements of each tensor at a place, and the
// factors of a channel.
#pragma once

#include "common/rows_cuda.h"
#include "density/batch_norm.h"

namespace robustcore::density {
namespace {

using Pass = BatchNormPass;
using Four = Quad<float>;

// Of channels with more chunks than these the sums are finished in a launch of their own; else each
// block that writes does so for its channels, in less time than a launch takes.
constexpr int64_t kFewChunks = 64;

// What follows from the arguments, counted once.
struct Plan {
  int64_t chunks, images_per_unit, units;
  bool small;  // planes
  bool wide;   // 16 bytes are one access

  Plan(const BatchNormArgs& args, bool wide_)
      : chunks(args.chunks()),
        images_per_unit(args.images_per_unit()),
        units(args.units()),
        small(args.small_planes()),
        wide(wide_) {}
};

__device__ int four_of(int64_t left) {
  return static_cast<int>(left < 0 ? 0 : left < 4 ? left : 4);
}

__device__ Four read_four(const void* data, int64_t at, int n, bool wide) {
  const float* from = static_cast<const float*>(data) + at;
  Four values{};
  if (wide) {
    if (n > 0) values = *reinterpret_cast<const Four*>(from);
  } else {
    RC_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (j < n) values.v[j] = from[j];
    }
  }
  return values;
}

__device__ void write_four(void* data, int64_t at, int n, bool wide, const Four& values) {
  float* to = static_cast<float*>(data) + at;
  if (wide) {
    if (n > 0) *reinterpret_cast<Four*>(to) = values;
  } else {
    RC_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (j < n) to[j] = values.v[j];
    }
  }
}

// Where nothing is added up, two places of three tensors are enough ahead.
constexpr int kWriteAhead = 2;

// Four elements of each tensor at kPlaces places, all read before the first is used; n of the four
// are there, and where `wide` says that 16 bytes are one access, all or none.
template <Pass kPass, int kPlaces = kAhead>
struct Batch {
  static constexpr bool kTwice = kPass == Pass::kDoubleBackward;
  int64_t at[kPlaces];
  int n[kPlaces];
  Four x[kPlaces], grad[kPlaces], v[kPlaces];

  __device__ void read(const BatchNormArgs& args, bool wide) {
    const auto all = [&](bool wide_) {
      RC_UNROLL
      for (int i = 0; i < kPlaces; ++i) {
        x[i] = read_four(args.x, at[i], n[i], wide_);
        grad[i] = read_four(args.grad, at[i], n[i], wide_);
        if constexpr (kTwice) v[i] = read_four(args.v, at[i], n[i], wide_);
      }
    };
    if (wide) {
      all(true);
    } else {
      all(false);
    }
  }

  // mean(j) is that of element j of four.
  template <class Mean>
  __device__ void add(const Mean& mean, Four (&sums)[sums_of(kPass)]) const {
    RC_UNROLL
    for (int i = 0; i < kPlaces; ++i) {
      RC_UNROLL
      for (int j = 0; j < 4; ++j) {
        const float c = j < n[i] ? x[i].v[j] - mean(j) : 0.0f;
        batch_norm_add<Scalar, kPass>(c, grad[i].v[j], kTwice ? v[i].v[j] : 0.0f,
                                      [&](int q) -> float& { return sums[q].v[j]; });
      }
    }
  }

  // factor(k, j) is factor k of element j of four.
  template <class Mean, class Factor>
  __device__ void write(const BatchNormArgs& args, bool wide, const Mean& mean,
                        const Factor& factor) const {
    RC_UNROLL
    for (int i = 0; i < kPlaces; ++i) {
      Four first, second;
      RC_UNROLL
      for (int j = 0; j < 4; ++j) {
        float f[factors_of(kPass)];
        RC_UNROLL
        for (int k = 0; k < factors_of(kPass); ++k) f[k] = factor(k, j);
        const float c = x[i].v[j] - mean(j), g = grad[i].v[j];
        first.v[j] = batch_norm_d_x<Scalar>(c, kTwice ? v[i].v[j] : g, f);
        if constexpr (kTwice) second.v[j] = batch_norm_second_d_x<Scalar>(c, g, v[i].v[j], f);
      }
      if constexpr (kTwice) {
        write_four(args.d_grad, at[i], n[i], wide, first);
        write_four(args.d_x, at[i], n[i], wide, second);
        continue;
      }
      if (args.more) {
        const Four more = read_four(args.more, at[i], n[i], wide);
        RC_UNROLL
        for (int j = 0; j < 4; ++j) first.v[j] += more.v[j];
      }
      write_four(args.d_x, at[i], n[i], wide, first);
    }
  }
};

// Factors of a channel, for set(k, factor).
template <Pass kPass, class Set>
__device__ void get_factors(const BatchNormArgs& args, int64_t chunks, int64_t channel, bool keep,
                            const Set& set) {
  if (chunks <= kFewChunks) {
    return batch_norm_finish<float, kPass>(args, chunks, channel, keep, set);
  }
  RC_UNROLL
  for (int k = 0; k < factors_of(kPass); ++k) {
    set(k, static_cast<const float*>(args.factors)[k * args.channels + channel]);
  }
}

}  // namespace
}  // namespace robustcore::density
