// Checks that the family's ops share.
#pragma once

#include "common/tensor.h"
#include "smoothing/smoothing.h"

namespace robustcore::smoothing {

// Of every op that draws: where in the stream it starts.
struct StreamArguments {
  int64_t seed, image_offset, sample_offset;
  const OptionalTensor &image_offset_tensor, &sample_offset_tensor;
};

inline const int64_t* offset_on_device(const char* name, const OptionalTensor& t, const Tensor& x) {
  if (!t) return nullptr;
  check(t->dim() == 0 && t->scalar_type() == ScalarType::Long, name, ": got ",
        name_of(t->scalar_type()), " of shape ", shape_of(*t), ", want a 0-d int64 tensor");
  check_same_device(name, *t, x, "x");
  return t->const_data_ptr<int64_t>();
}

inline Stream make_stream(const Tensor& x, int64_t images, int64_t samples, int64_t elements,
                          const StreamArguments& from) {
  const auto& [seed, image_offset, sample_offset, image_offset_tensor, sample_offset_tensor] = from;
  check(elements <= kMaxElements, "x: got ", elements, " elements an image, the stream has 2**34");
  check(image_offset >= 0 && image_offset <= kMaxImages - images, "image_offset: got ",
        image_offset, " for ", images, " images, want indices in [0, 2**48)");
  check(sample_offset >= 0 && sample_offset <= kMaxSamples - samples, "sample_offset: got ",
        sample_offset, " for ", samples, " samples, want indices in [0, 2**40)");
  return {static_cast<uint64_t>(seed), image_offset, sample_offset,
          offset_on_device("image_offset", image_offset_tensor, x),
          offset_on_device("sample_offset", sample_offset_tensor, x)};
}

inline int64_t elements_of(const Tensor& t, int64_t first_dim) {
  int64_t n = 1;
  for (int64_t d = first_dim; d < t.dim(); ++d) n *= t.size(d);
  return n;
}

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
