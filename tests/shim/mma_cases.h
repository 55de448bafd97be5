// One warp's products, as the shim runs them, against sums in double: fragments from shared memory,
// in every way of loading them.
#pragma once

#include <cmath>

#include "cases.h"
#include "common/async_copy.h"
#include "common/dynamic_shared.h"
#include "common/mma.h"

namespace robustcore {

// c = a b^T, or a b where b is transposed: a [16, k], b [16, k] or [k, 16], c [16, 16]; T is what
// memory holds, E what is multiplied. k is a multiple of mma::kDepth<E>.
template <class T, class E, bool kTransposed>
__global__ void product_kernel(const T* a, const T* b, float* c, int k) {
  T* a_shared = reinterpret_cast<T*>(dynamic_shared());
  T* b_shared = a_shared + 16 * k;
  constexpr int kPacked = 16 / sizeof(T);
  for (int i = mma::lane(); i < 16 * k / kPacked; i += mma::kLanes) {
    copy_async(a_shared + i * kPacked, a + i * kPacked);
    copy_async(b_shared + i * kPacked, b + i * kPacked);
  }
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  const int lane = mma::lane();
  mma::FragmentC sums[2] = {};
  for (int first = 0; first < k; first += mma::kDepth<E>) {
    mma::FragmentA<T> fa;
    mma::PairB<T> fb;
    mma::load_a(fa, reinterpret_cast<const char*>(a_shared + mma::row_for_a(lane) * k + first) +
                        mma::byte_for_a(lane));
    if constexpr (kTransposed) {
      mma::load_b_transposed(
          fb, b_shared + (first + mma::row_for_b(lane)) * 16 + mma::first_column_for_b(lane));
    } else {
      const T* column = b_shared + mma::column_for_b(lane) * k + first;
      mma::load_b(fb, reinterpret_cast<const char*>(column) + mma::byte_for_b(lane));
    }
    for (int n = 0; n < 2; ++n) {
      if constexpr (std::is_same_v<E, mma::Tf32>) {
        mma::multiply_add(sums[n], mma::split(fa), mma::split(fb.b[n]));
      } else {
        mma::multiply_add(sums[n], fa, fb.b[n]);
      }
    }
  }
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 4; ++i) {
      c[mma::row_of(lane, i) * 16 + n * mma::kColumns + mma::column_of(lane, i)] = sums[n].v[i];
    }
  }
}

template <class T, class E, bool kTransposed>
void product_case(const char* name, int k) {
  const std::vector<T> a = random_values<T>(16 * k, 1), b = random_values<T>(16 * k, 2);
  std::vector<float> c(256);
  launch_shared(product_kernel<T, E, kTransposed>, 1, mma::kLanes, 32 * k * sizeof(T), nullptr,
                a.data(), b.data(), c.data(), k);
  bool near = true;
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      double sum = 0, size = 0;
      for (int i = 0; i < k; ++i) {
        const double product = static_cast<double>(to_float(a[m * k + i])) *
                               to_float(b[kTransposed ? i * 16 + n : n * k + i]);
        sum += product, size += std::abs(product);
      }
      near = near && std::abs(c[m * 16 + n] - sum) <= (0x1p-21 + k * 0x1p-24) * size;
    }
  }
  report(std::string("product ") + name + " " + std::to_string(k), near);
}

// What a float32 loses when it is split is less than 2^-23 of it.
inline void split_case() {
  bool near = true;
  for (const float v : random_values<float>(4096, 3)) {
    const mma::SplitNumber parts = mma::split(v);
    const double sum =
        static_cast<double>(bit_cast<float>(parts.big.bits)) + bit_cast<float>(parts.small.bits);
    near = near && std::abs(sum - v) <= 0x1p-23 * std::abs(v) &&
           ((parts.big.bits | parts.small.bits) & 0x1FFFu) == 0;
  }
  report("split", near && mma::split(NAN).big.bits == 0x7FFFE000u);
}

inline void mma_cases() {
  split_case();
  for (const int k : {16, 64}) {
    product_case<BFloat16, BFloat16, false>("bfloat16", k);
    product_case<BFloat16, BFloat16, true>("bfloat16, transposed", k);
    product_case<Half, Half, false>("float16", k);
    product_case<Half, Half, true>("float16, transposed", k);
    product_case<float, mma::Tf32, false>("float32 split", k);
  }
}

}  // namespace robustcore
