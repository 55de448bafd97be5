// Running a SIMD kernel on torch's threads, in the variant for the active instruction set.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <new>

#include "common/isa.h"
#include "common/strided.h"

// RC_ACTIVE_KERNELS: the family's table of kernels to run. On x86 a family has simd_baseline,
// simd_avx2 and simd_avx512, elsewhere simd_baseline alone.
#if defined(RC_HAVE_X86)
#define RC_ACTIVE_KERNELS                                   \
  (::robustcore::active_isa() == Isa::kAvx512 ? simd_avx512 \
   : ::robustcore::active_isa() == Isa::kAvx2 ? simd_avx2   \
                                              : simd_baseline)
#else
#define RC_ACTIVE_KERNELS simd_baseline
#endif

namespace robustcore {

// Threads are worth their wake-up from about this much work on.
constexpr int64_t kGrainElements = 16384;

// kernel(args, begin, end) over `units` units of `elements` elements in all. Units are fixed by the
// arguments, so the result does not depend on how threads share them out.
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

// The same for a kernel that wants floats of its own on each thread, and whose units are long.
template <class Args>
void run_with_scratch(void (*kernel)(const Args&, float*, int64_t, int64_t), const Args& args,
                      int64_t units, int64_t scratch_floats) {
  torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_floats);
    kernel(args, scratch.data(), begin, end);
  });
}

}  // namespace robustcore
