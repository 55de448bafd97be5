// Element types as kernels see them: a tag, and conversions to and from float32 that round to
// nearest even on every device.
#pragma once

#include <type_traits>

#include "common/lanes.h"

namespace robustcore {

enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

inline namespace RC_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

RC_HOST_DEVICE float to_float(float v) {
  return v;
}
RC_HOST_DEVICE float to_float(double v) {
  return static_cast<float>(v);
}
RC_HOST_DEVICE float to_float(BFloat16 v) {
  return bit_cast<float>(static_cast<uint32_t>(v.bits) << 16);
}
RC_HOST_DEVICE float to_float(Half v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = v.bits & 0x7FFFu;
  // Shifted into float32's fields, a half is 2^112 too small (subnormals included): one exact
  // multiplication repairs it. Infinity and NaN carry their exponent over.
  const float scaled = bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t special = magnitude >= 0x7C00u ? 0x7F800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | sign);
}

RC_HOST_DEVICE void from_float(float v, float& out) {
  out = v;
}
// On a GPU the conversion is an instruction; which NaN it gives is ours to say.
RC_HOST_DEVICE void from_float(float v, BFloat16& out) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
  if (v != v) out.bits = 0x7FC0u;
#else
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  out.bits = static_cast<uint16_t>(nan ? 0x7FC0u : rounded);
#endif
}
RC_HOST_DEVICE void from_float(float v, Half& out) {
  const uint32_t bits = bit_cast<uint32_t>(v);
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
  if (v != v) out.bits = static_cast<uint16_t>(0x7E00u | ((bits >> 16) & 0x8000u));
#else
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  // Below the normal range, adding 0.5 aligns the half's subnormal unit (2^-24) with float32's last
  // bit, so the addition itself rounds to nearest even.
  const float aligned = bit_cast<float>(magnitude) + 0.5f;
  const uint32_t subnormal = bit_cast<uint32_t>(aligned) - 0x3F000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7C00u : half;  // 65536 and above, infinity included
  half = magnitude > 0x7F800000u ? 0x7E00u : half;
  out.bits = static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
#endif
}

// Between any two element types, through float32 where one of them is narrower.
template <class To, class From>
RC_HOST_DEVICE To convert(From v) {
  if constexpr (std::is_same_v<To, From>) {
    return v;
  } else if constexpr (std::is_same_v<To, double>) {
    return static_cast<double>(to_float(v));
  } else {
    To out;
    from_float(to_float(v), out);
    return out;
  }
}

// The type that arithmetic on T is done in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls body(T{}) with the element type of `dtype`.
template <class Body>
RC_HOST_DEVICE void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kFloat64:
      return body(double{});
    case DType::kFloat16:
      return body(Half{});
    case DType::kBFloat16:
      return body(BFloat16{});
  }
}

// The same with the type that arithmetic on it is done in.
template <class Body>
RC_HOST_DEVICE void dispatch_arithmetic(DType dtype, const Body& body) {
  if (dtype == DType::kFloat64) return body(double{});
  body(float{});
}

// Calls body(E{}) with the element type of `dtype`, which is one whose arithmetic is done in T.
template <class T, class Body>
RC_HOST_DEVICE void dispatch_narrow(DType dtype, const Body& body) {
  if constexpr (std::is_same_v<T, double>) {
    body(double{});
  } else {
    switch (dtype) {
      case DType::kFloat16:
        return body(Half{});
      case DType::kBFloat16:
        return body(BFloat16{});
      default:
        return body(float{});
    }
  }
}

// Element `i` of `data` in the arithmetic type T (float or double).
template <class T>
RC_HOST_DEVICE T load_as(const void* data, DType dtype, int64_t i) {
  T value{};
  dispatch(dtype,
           [&](auto tag) { value = convert<T>(static_cast<const decltype(tag)*>(data)[i]); });
  return value;
}

}  // namespace RC_ISA
}  // namespace robustcore
