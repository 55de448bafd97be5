// The variants of a CPU kernel, one per instruction set, and the choice among them; torch-free.
#pragma once

#include "common/isa.h"
#include "common/macros.h"

// The name of this translation unit's variant.
#define RC_VARIANT(kernel) RC_CONCAT(RC_CONCAT(kernel, _), RC_ISA)

// RC_VARIANTS(kernel, parameters...) declares all variants, RC_PICK(kernel) is the one to run.
// RC_WIDE_VARIANTS and RC_PICK_WIDE are the same for a kernel that needs wide vectors: the baseline
// has none, and the pick is null there.
#if defined(RC_HAVE_X86)
#define RC_WIDE_VARIANTS(kernel, ...) \
  void kernel##_avx2(__VA_ARGS__);    \
  void kernel##_avx512(__VA_ARGS__)
#define RC_PICK_FROM(baseline, kernel) \
  ::robustcore::pick_variant<decltype(&kernel##_avx2)>(baseline, kernel##_avx2, kernel##_avx512)
#define RC_VARIANTS(kernel, ...)       \
  void kernel##_baseline(__VA_ARGS__); \
  RC_WIDE_VARIANTS(kernel, __VA_ARGS__)
#define RC_PICK(kernel) RC_PICK_FROM(kernel##_baseline, kernel)
#define RC_PICK_WIDE(kernel) RC_PICK_FROM(nullptr, kernel)
#else
#define RC_WIDE_VARIANTS(kernel, ...) using kernel##_pointer = void (*)(__VA_ARGS__)
#define RC_VARIANTS(kernel, ...) void kernel##_baseline(__VA_ARGS__)
#define RC_PICK(kernel) kernel##_baseline
#define RC_PICK_WIDE(kernel) \
  kernel##_pointer {}
#endif

namespace robustcore {

template <class Kernel>
Kernel pick_variant(Kernel baseline, Kernel avx2, Kernel avx512) {
  const Isa isa = active_isa();
  return isa == Isa::kAvx512 ? avx512 : isa == Isa::kAvx2 ? avx2 : baseline;
}

}  // namespace robustcore
