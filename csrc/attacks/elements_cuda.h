// Single elements of a dtype that is known when a kernel runs: beside the arithmetic on them, and
// the memory's latency, the branch is nothing, and a kernel for each dtype would be bytes.
#pragma once

#include "common/cuda.h"

namespace robustcore::attacks {
namespace {

template <class T>
__device__ __forceinline__ void store_as(void* data, DType dtype, int64_t at, T value) {
  dispatch_narrow<T>(dtype, [&](auto tag) {
    static_cast<decltype(tag)*>(data)[at] = convert<decltype(tag)>(value);
  });
}

template <class T>
__device__ __forceinline__ T read_as(const void* data, DType dtype, int64_t at) {
  T value{};
  dispatch_narrow<T>(
      dtype, [&](auto tag) { value = convert<T>(static_cast<const decltype(tag)*>(data)[at]); });
  return value;
}

}  // namespace
}  // namespace robustcore::attacks
