// Arguments that several ops of attacks have: norms, radii, boxes, values of one a row, outputs.
#pragma once

#include <cmath>

#include "attacks/ball.h"
#include "attacks/narrow.h"
#include "common/row_checks.h"
#include "common/tensor.h"

namespace robustcore::attacks {

inline Norm norm_of(int64_t norm) {
  check(norm >= 0 && norm <= static_cast<int64_t>(Norm::kL0), "norm: got ", norm, ", want 0 to 3");
  return static_cast<Norm>(norm);
}

inline void check_eps(Norm norm, double eps) {
  check(eps > 0 && std::isfinite(eps), "eps: got ", eps, ", want a finite number above 0");
  check(norm != Norm::kL0 || eps >= 1, "eps: got ", eps, " pixels, want at least 1");
}

// values: [N] for the rows of x, or none
inline RowParameter row_parameter(const char* name, double value, const OptionalTensor& values,
                                  const Tensor& x) {
  RowParameter parameter{{nullptr, 0}, value};
  if (values) parameter.values = per_row(name, *values, x, "x");
  return parameter;
}

// t: contiguous int64 [N], for the images of x
inline const int64_t* indices_of(const char* name, const Tensor& t, const Tensor& x,
                                 const char* x_name) {
  check(t.dim() == 1 && t.size(0) == x.size(0) && t.scalar_type() == ScalarType::Long &&
            t.is_contiguous(),
        name, ": got ", name_of(t.scalar_type()), " of shape ", shape_of(t),
        ", want a contiguous int64 tensor [", x.size(0), "]");
  check_same_device(name, t, x, x_name);
  return t.const_data_ptr<int64_t>();
}

struct Box {
  double low, high;
};

// The values of dtype that are at most v, or at least v where it is rounded up.
inline double rounded(double v, DType dtype, bool up) {
  if (dtype == DType::kFloat64) return v;
  const float to = up ? INFINITY : -INFINITY;
  float f = static_cast<float>(v);
  if (up ? f < v : f > v) f = std::nextafter(f, to);
  dispatch(dtype, [&](auto tag) { f = to_float(rounded_towards<decltype(tag)>(f, to)); });
  return f;
}

// What of [low, high] a tensor of dtype can hold.
inline Box box_within(double low, double high, DType dtype) {
  check(std::isfinite(low), "low: got ", low, ", want a finite number");
  check(std::isfinite(high) && high > low, "high: got ", high, ", want a finite number above low, ",
        low);
  const Box box{rounded(low, dtype, true), rounded(high, dtype, false)};
  check(box.low <= box.high, "high: got ", high, ", no value of x's dtype lies between it and low");
  return box;
}

// x's sizes and dtype; its layout where that is channels last, else contiguous.
inline Tensor empty_like_images(const Tensor& x) {
  const std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  const bool last = x.dim() == 4 && channels_last(x);
  return empty_on(x, sizes, dense_strides(sizes, last), x.scalar_type());
}

// Where results of x's shape and dtype can be written: no element twice.
inline void check_output(const char* name, const Tensor& out, const Tensor& x) {
  check_like(name, out, x, "x");
  check(out.is_contiguous() || (out.dim() == 4 && channels_last(out)), name,
        ": has to be contiguous or channels_last");
}

}  // namespace robustcore::attacks
