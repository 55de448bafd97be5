// The tensors of a watch, which two ops have, checked.
#pragma once

#include "attacks/watch.h"
#include "common/tensor.h"

namespace robustcore::attacks {

struct WatchTensors {
  const Tensor& x;                         // [N, *D]
  const OptionalTensor& grad;              // [N, *D]
  const Tensor& loss;                      // [N]
  const Tensor& ahead;                     // [N]
  const OptionalTensor& counts;            // [N] bool
  const OptionalTensor &best, &best_grad;  // [N, *D]
  const Tensor& best_loss;                 // [N]
  const Tensor &found, &fooled, &zero;     // [N] bool
  const Tensor &nan_grad, &nan_logits;     // [N] bool
  const Tensor& age;                       // [N] int64
};

WatchArgs watch_args(const WatchTensors& from);

// t has x's shape and dtype, and is as dense, in the same order.
void check_laid_out(const char* name, const Tensor& t, const Tensor& x);

// t: contiguous [N], for the rows of x
void* values_of(const char* name, const Tensor& t, const Tensor& x, ScalarType type);

}  // namespace robustcore::attacks
