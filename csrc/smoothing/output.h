// The outputs of ops that make samples of images: [B, S, *D], in logical order or channels last.
#pragma once

#include "common/tensor.h"

namespace robustcore::smoothing {

// Sizes and strides of the output: [B, S, *D], logical order or channels last.
struct OutputLayout {
  std::vector<int64_t> sizes, strides;
};

inline OutputLayout output_layout(const Tensor& x, int64_t num_samples, bool channels_last) {
  check(!channels_last || x.dim() == 4, "memory_format: channels_last wants x [B, C, H, W], got ",
        shape_of(x));
  OutputLayout out;
  out.sizes = {x.size(0), num_samples};
  for (int64_t d = 1; d < x.dim(); ++d) out.sizes.push_back(x.size(d));
  const int64_t n = static_cast<int64_t>(out.sizes.size());
  out.strides.assign(n, 1);
  auto lay = [&, stride = int64_t{1}](int64_t d) mutable {
    out.strides[d] = stride;
    stride *= out.sizes[d] > 0 ? out.sizes[d] : 1;
  };
  if (channels_last) {
    for (const int64_t d : {2, 4, 3, 1, 0}) lay(d);
  } else {
    for (int64_t d = n - 1; d >= 0; --d) lay(d);
  }
  return out;
}

inline void check_layout(const Tensor& out, const OutputLayout& layout, bool channels_last) {
  bool same = out.dim() == static_cast<int64_t>(layout.sizes.size());
  for (int64_t d = 0; same && d < out.dim(); ++d) {
    same = out.size(d) == layout.sizes[d] &&
           (out.size(d) == 1 || out.numel() == 0 || out.stride(d) == layout.strides[d]);
  }
  if (!same) {
    std::ostringstream want;
    for (size_t d = 0; d < layout.sizes.size(); ++d) want << (d ? ", " : "") << layout.sizes[d];
    fail("out: got shape ", shape_of(out), ", want [", want.str(), "] in ",
         channels_last ? "channels_last" : "contiguous", " layout");
  }
}

}  // namespace robustcore::smoothing
