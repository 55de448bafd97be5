#include "density/simd.h"

#include "common/lanes.h"

namespace robustcore::density {

const SimdKernels RC_CONCAT(simd_, RC_ISA) = {
#if defined(__AVX2__)
    conv, conv_kernel, conv_factors, conv_gradient, 2 * Lanes::kFloats,
#else
    nullptr, nullptr, nullptr, nullptr, 0,
#endif
};

}  // namespace robustcore::density
