// What the programs that compare kernels share: a line a case, the count of those that differ,
// dtypes, values.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "common/dtype.h"

namespace robustcore {

inline int failures = 0;

// Prints a case and whether its two results were the same.
inline void report(const std::string& name, bool same) {
  std::printf("%s %s\n", same ? "same " : "DIFFER", name.c_str());
  failures += !same;
}

// Prints how many differ; the exit status is their number, at most 99.
inline int finish() {
  std::printf("%d cases differ\n", failures);
  return failures < 99 ? failures : 99;
}

inline size_t size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

template <class T>
constexpr DType kType = std::is_same_v<T, double>     ? DType::kFloat64
                        : std::is_same_v<T, Half>     ? DType::kFloat16
                        : std::is_same_v<T, BFloat16> ? DType::kBFloat16
                                                      : DType::kFloat32;

struct Random {
  uint32_t state;
  float operator()() {  // in (-8, 8)
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(static_cast<int32_t>(state)) * 0x1p-28f;
  }
};

// Values in (-8, 8), the same in every run.
template <class T>
std::vector<T> random_values(size_t n, uint32_t seed) {
  Random random{seed * 2654435761u + 1};
  std::vector<T> v(n);
  for (T& x : v) x = convert<T>(random());
  return v;
}

}  // namespace robustcore
