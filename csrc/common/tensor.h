// Torch at the edge: checks on stable-ABI tensors, and the plain views that kernels take.
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/strided.h"

namespace robustcore {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Bad input, a ValueError in Python: the message names the argument, what it got, what it wants.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) fail(parts...);
}

// As torch's Python API writes it.
inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    default:
      return torch::headeronly::toString(type);
  }
}

inline std::string shape_of(const Tensor& t) {
  std::ostringstream s;
  s << '[';
  for (int64_t d = 0; d < t.dim(); ++d) s << (d ? ", " : "") << t.size(d);
  s << ']';
  return s.str();
}

inline DType floating_dtype(const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail(name, ": got ", name_of(type), ", want float32, float64, float16 or bfloat16");
  }
}

inline void check_same_device(const char* name, const Tensor& t, const Tensor& x,
                              const char* x_name) {
  check(t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index(), name,
        ": is on another device than ", x_name);
}

// Fresh memory of this size costs more in page faults than a fast kernel takes to fill it; huge
// pages make them 512 times fewer. Only advice: where the system does not give them, nothing
// changes.
inline void advise_huge_pages(void* data, size_t bytes) {
  constexpr size_t kWorthwhile = size_t{4} << 20, kPage = 4096;
  if (bytes < kWorthwhile) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// In the words by which callers who try a smaller batch tell want of memory from other errors.
[[noreturn]] inline void fail_allocation(const std::vector<int64_t>& sizes, ScalarType dtype,
                                         bool cuda) {
  std::ostringstream message;
  message << (cuda ? "CUDA out of memory." : "DefaultCPUAllocator: can't allocate memory:")
          << " Tried to allocate a tensor of shape [";
  for (size_t d = 0; d < sizes.size(); ++d) message << (d ? ", " : "") << sizes[d];
  message << "] of " << name_of(dtype);
  throw std::runtime_error(message.str());
}

// A new tensor on the device of `like`. Straight to the allocator: the dispatcher's `empty` costs
// as much as a small kernel.
inline Tensor empty_on(const Tensor& like, const std::vector<int64_t>& sizes,
                       const std::vector<int64_t>& strides, ScalarType dtype) {
  AtenTensorHandle handle = nullptr;
  const int32_t device_type =
      like.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu();
  const auto error = aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      like.is_cuda() ? like.get_device_index() : 0, &handle);
  if (error != AOTI_TORCH_SUCCESS) fail_allocation(sizes, dtype, like.is_cuda());
  Tensor result(handle);
  if (!like.is_cuda()) {
    advise_huge_pages(result.mutable_data_ptr(), result.numel() * result.element_size());
  }
  return result;
}

// Of [N, C, H, W]; where a size is 1 the stride says nothing.
inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// And not contiguous too.
inline bool channels_last(const Tensor& t) {
  return is_channels_last(t) && !t.is_contiguous();
}

// Strides without gaps in the order of dimensions, or with dimension 1, the channels, last.
inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  std::vector<int64_t> strides(sizes.size(), 1);
  int64_t stride = channels_last ? sizes[1] : 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    if (channels_last && d == 1) continue;
    strides[d] = stride;
    stride *= sizes[d];
  }
  return strides;
}

// Elements of all dimensions from `first_dim` on.
inline int64_t elements_of(const Tensor& t, int64_t first_dim) {
  int64_t n = 1;
  for (int64_t d = first_dim; d < t.dim(); ++d) n *= t.size(d);
  return n;
}

// A view of `t` as [image, sample, elements]: dimension 0 is the image, dimension 1 the sample if
// `has_samples`, the rest the element index. Where a dimension of `t` is 1 and `sizes` says more,
// it is broadcast.
inline StridedView strided_view(const char* name, const Tensor& t,
                                torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                bool has_samples = false) {
  StridedView view{};
  view.data = t.const_data_ptr();
  view.dtype = floating_dtype(name, t.scalar_type());
  const auto stride = [&](size_t d) { return t.size(d) == 1 ? int64_t{0} : t.stride(d); };
  const auto fits = [&] {
    if (static_cast<size_t>(t.dim()) != sizes.size()) return false;
    for (size_t d = 0; d < sizes.size(); ++d) {
      if (t.size(d) != 1 && t.size(d) != sizes[d]) return false;
    }
    return true;
  };
  if (!fits()) {
    std::ostringstream want;
    for (size_t d = 0; d < sizes.size(); ++d) want << (d ? ", " : "") << sizes[d];
    fail(name, ": got shape ", shape_of(t), ", want one that broadcasts to [", want.str(), "]");
  }
  view.image_stride = stride(0);
  view.sample_stride = has_samples ? stride(1) : 0;
  for (size_t d = has_samples ? 2 : 1; d < sizes.size(); ++d) {
    if (sizes[d] == 1) continue;
    if (view.dims > 0 && view.strides[view.dims - 1] == stride(d) * sizes[d]) {
      view.sizes[view.dims - 1] *= sizes[d];  // this dimension continues the one before
      view.strides[view.dims - 1] = stride(d);
      continue;
    }
    check(view.dims < StridedView::kMaxDims, name, ": has more than ", StridedView::kMaxDims,
          " dimensions that do not merge; make it contiguous");
    view.sizes[view.dims] = sizes[d];
    view.strides[view.dims++] = stride(d);
  }
  if (view.dims == 0) view.sizes[0] = 1, view.strides[0] = 1, view.dims = 1;
  return view;
}

}  // namespace robustcore
