// Running a CPU kernel on torch's threads, in the variant for this processor.
//
// A kernel is written once in TOPIC_simd.cpp, as RC_VARIANT(name), which is compiled once per
// instruction set; TOPIC.h declares the variants with RC_VARIANTS, and RC_PICK(name) is the one to
// run. It processes units [begin, end) of its work. Units are fixed by the arguments alone, so the
// result does not depend on how threads share them out.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <new>

#include "common/strided.h"
#include "common/variants.h"

namespace robustcore {

// Threads are worth their wake-up from about this much work on.
constexpr int64_t kGrainElements = 16384;

// kernel(args, begin, end) over `units` units of `elements` elements in all.
template <class Args>
void run_units(void (*kernel)(const Args&, int64_t, int64_t), const Args& args, int64_t units,
               int64_t elements) {
  if (units == 0) return;
  const int64_t per_unit = elements / units + 1;
  torch::stable::parallel_for(0, units, ceil_div(kGrainElements, per_unit),
                              [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// 64-byte aligned floats: a vector store then touches one cache line.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(::operator new(floats * sizeof(float), kAlignment))) {}
  ~Scratch() {
    ::operator delete(data_, kAlignment);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* data() const {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  float* data_;
};

// The same for a kernel that wants floats of its own on each thread, and whose units are long
// unless `per_unit` elements say otherwise.
template <class Args>
void run_with_scratch(void (*kernel)(const Args&, float*, int64_t, int64_t), const Args& args,
                      int64_t units, int64_t scratch_floats, int64_t per_unit = kGrainElements) {
  const int64_t grain = ceil_div(kGrainElements, per_unit);
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_floats);
    kernel(args, scratch.data(), begin, end);
  });
}

}  // namespace robustcore
