// Checks of matrices, of what lies like them, and of values of one a row.
#pragma once

#include <algorithm>

#include "common/rows.h"
#include "common/tensor.h"

namespace robustcore {

// What sums are taken in, and what values of one a row come in.
inline ScalarType arithmetic_type(const char* name, const Tensor& t) {
  return floating_dtype(name, t.scalar_type()) == DType::kFloat64 ? ScalarType::Double
                                                                  : ScalarType::Float;
}

inline void check_vector(const char* name, const Tensor& t, int64_t size, ScalarType type,
                         const Tensor& like, const char* like_name) {
  check(t.dim() == 1 && t.size(0) == size && t.scalar_type() == type, name, ": got ",
        name_of(t.scalar_type()), " of shape ", shape_of(t), ", want ", name_of(type),
        " of shape [", size, "]");
  check_same_device(name, t, like, like_name);
}

inline void check_like(const char* name, const Tensor& t, const Tensor& like,
                       const char* like_name) {
  const auto sizes = t.sizes(), wanted = like.sizes();  // torch 2.10 has no == for them
  const bool same = std::equal(sizes.begin(), sizes.end(), wanted.begin(), wanted.end());
  check(same && t.scalar_type() == like.scalar_type(), name, ": got ", name_of(t.scalar_type()),
        " of shape ", shape_of(t), ", want ", name_of(like.scalar_type()), " of shape ",
        shape_of(like), " as ", like_name);
  check_same_device(name, t, like, like_name);
}

// t: [N], for the rows of `like`, [N, ...]
inline PerRow per_row(const char* name, const Tensor& t, const Tensor& like,
                      const char* like_name) {
  check_vector(name, t, like.size(0), arithmetic_type(like_name, like), like, like_name);
  return {t.const_data_ptr(), t.stride(0)};
}

// RowPlan::parts for the rows of a matrix; none on the CPU.
inline OptionalTensor row_parts(const Tensor& like, int64_t rows, int64_t columns) {
  if (!like.is_cuda() || columns <= kLongRow) return std::nullopt;
  const int64_t values = 2 * rows * ceil_div(columns, kSegment);
  return torch::stable::new_empty(like, {values}, arithmetic_type("rows", like));
}
inline void* data_or_null(const OptionalTensor& t) {
  return t ? t->mutable_data_ptr() : nullptr;
}

}  // namespace robustcore
