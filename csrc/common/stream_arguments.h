// The stream as arguments of an op: five of them, spelled once. An op takes RC_STREAM_PARAMETERS
// where its schema has RC_STREAM_SCHEMA, and hands RC_STREAM_ARGUMENTS on.
#pragma once

#include "common/stream.h"
#include "common/tensor.h"

#define RC_STREAM_SCHEMA                                                                  \
  "SymInt seed, SymInt image_offset, SymInt sample_offset, Tensor? image_offset_tensor, " \
  "Tensor? sample_offset_tensor"
#define RC_STREAM_PARAMETERS                                   \
  int64_t seed, int64_t image_offset, int64_t sample_offset,   \
      const ::robustcore::OptionalTensor &image_offset_tensor, \
      const ::robustcore::OptionalTensor &sample_offset_tensor
#define RC_STREAM_ARGUMENTS                                                      \
  ::robustcore::StreamArguments {                                                \
    seed, image_offset, sample_offset, image_offset_tensor, sample_offset_tensor \
  }

namespace robustcore {

struct StreamArguments {
  int64_t seed, image_offset, sample_offset;
  const OptionalTensor &image_offset_tensor, &sample_offset_tensor;  // 0-d int64, on x's device
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
  check(elements <= kMaxElements, "x: got ", elements, " elements an image, the stream has 2**34");
  check(from.image_offset >= 0 && from.image_offset <= kMaxImages - images, "image_offset: got ",
        from.image_offset, " for ", images, " images, want indices in [0, 2**48)");
  check(from.sample_offset >= 0 && from.sample_offset <= kMaxSamples - samples,
        "sample_offset: got ", from.sample_offset, " for ", samples,
        " samples, want indices in [0, 2**40)");
  return {static_cast<uint64_t>(from.seed), from.image_offset, from.sample_offset,
          offset_on_device("image_offset", from.image_offset_tensor, x),
          offset_on_device("sample_offset", from.sample_offset_tensor, x)};
}

}  // namespace robustcore
