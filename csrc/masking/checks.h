// Checks that both topics make of their tensors.
#pragma once

#include "common/tensor.h"
#include "masking/view.h"

namespace robustcore::masking {

inline void check_image(const char* name, const Tensor& t) {
  check(t.dim() == 4, name, ": got shape ", shape_of(t), ", want [N, C, H, W]");
}

// How many images both make.
inline int64_t check_mask(const Tensor& mask,  // [N | 1, 1, H, W]
                          const Tensor& x) {   // [N | 1, C, H, W]
  check(mask.dim() == 4 && mask.size(1) == 1 && mask.size(2) == x.size(2) &&
            mask.size(3) == x.size(3),
        "mask: got shape ", shape_of(mask), ", want [N, 1, ", x.size(2), ", ", x.size(3),
        "] for an x of shape ", shape_of(x));
  check(mask.size(0) == x.size(0) || mask.size(0) == 1 || x.size(0) == 1, "mask: got ",
        mask.size(0), " masks for ", x.size(0), " images, want as many, or one of either");
  check_same_device("mask", mask, x, "x");
  return x.size(0) == 1 ? mask.size(0) : x.size(0);
}

inline View4 view_of(const char* name, const Tensor& t) {  // [N, C, H, W]
  View4 view{t.const_data_ptr(), floating_dtype(name, t.scalar_type()), {}};
  for (int64_t d = 0; d < 4; ++d) view.strides[d] = t.size(d) == 1 ? 0 : t.stride(d);
  return view;
}

}  // namespace robustcore::masking
