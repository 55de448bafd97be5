// Log-sum-exp over classes with its first two derivatives, of a matrix or of a chunk of its columns
// at a time: the arguments of the kernels and the arithmetic both devices run.
#pragma once

#include "common/math.h"
#include "common/rows.h"
#include "common/variants.h"

namespace robustcore::density {

// Columns [first_class, first_class + classes) of the logits. A vector over classes is of the
// arithmetic type.
struct LogitsChunk {
  int64_t rows, classes;
  StridedView logits;      // [rows, classes]
  const void* bias;        // [classes], added to the logits; null: 0
  const int64_t* targets;  // [rows], among the classes of all chunks; null: none
  int64_t first_class;

  int64_t elements() const {
    return rows * classes;
  }
};

// lse[n] = log sum_k exp(logits[n, k] + bias[k]).
struct LogsumexpArgs {
  LogitsChunk chunk;
  void *max, *sum;      // [rows]: state carried from chunk to chunk, or null
  bool first;           // the state is not read
  void* lse;            // [rows]
  void* target_logits;  // [rows]: logits + bias of the target where the chunk has it; with targets
  RowPlan plan;
};

// weights[n, k] = grad[n] p[n, k] + [k is the target] grad_target[n], p = exp(logits + bias - lse).
struct LogsumexpBackwardArgs {
  LogitsChunk chunk;
  PerRow grad, lse, grad_target;
  void* weights;  // [rows, classes] in the dtype of the logits, whose place it may take
  RowPlan plan;
};

// With a cotangent v of the above: dot[n] = <p, v + v_bias> and
// curvature[n, k] = grad[n] p[n, k] (v[n, k] + v_bias[k] - dot[n]).
struct LogsumexpDoubleBackwardArgs {
  LogitsChunk chunk;
  PerRow grad, lse, grad_target;
  StridedView v;       // [rows, classes]
  const void* v_bias;  // [classes]; null: 0
  bool reduce;         // this chunk adds to dot; else it is only read
  void* dot;           // [rows]
  // [rows, classes] in the dtype of the logits
  void* curvature;  // may take the place of v; null: only dot is wanted
  void* weights;    // as in LogsumexpBackwardArgs; null: not wanted
  RowPlan plan;
};

// A unit is a row: one thread sums it.
RC_VARIANTS(logsumexp, const LogsumexpArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(logsumexp_backward, const LogsumexpBackwardArgs& args, int64_t begin, int64_t end);
RC_VARIANTS(logsumexp_double_backward, const LogsumexpDoubleBackwardArgs& args, int64_t begin,
            int64_t end);
void logsumexp_cuda(const LogsumexpArgs& args, void* stream);
void logsumexp_backward_cuda(const LogsumexpBackwardArgs& args, void* stream);
void logsumexp_double_backward_cuda(const LogsumexpDoubleBackwardArgs& args, void* stream);

inline namespace RC_ISA {

// The column of the row's target; not in [0, classes) where the chunk does not have it.
RC_HOST_DEVICE int64_t target_column(const LogitsChunk& chunk, int64_t row) {
  return chunk.targets ? chunk.targets[row] - chunk.first_class : -1;
}

// What is subtracted before exp: the maximum, or 0 where it is infinite (all classes impossible, or
// one certain) or NaN, so that the sum comes out 0, infinite or NaN.
template <class T>
RC_HOST_DEVICE T shift_of(T max) {
  return finite(max) ? max : T(0);
}

// What a sum of exponentials scaled by m counts in one scaled by max.
template <class L>
RC_HOST_DEVICE typename L::Real exp_weight(typename L::Real m, typename L::Real max) {
  return exp<L>(m - shift_of(max));
}

// Two runs of exponentials as one.
template <class L>
RC_HOST_DEVICE Scaled<typename L::Real> add_exp(Scaled<typename L::Real> a,
                                                Scaled<typename L::Real> b) {
  const auto max = L::max(a.max, b.max);
  return {max, L::fma(a.sum, exp_weight<L>(a.max, max), b.sum * exp_weight<L>(b.max, max))};
}

template <class L>
RC_HOST_DEVICE typename L::Real lse_of(Scaled<typename L::Real> total) {
  using T = typename L::Real;
  const T log_sum = total.sum > T(0) && finite(total.sum) ? log<L>(total.sum)
                    : total.sum == T(0)                   ? T(-INFINITY)
                                                          : total.sum;
  return shift_of(total.max) + log_sum;
}

// What is subtracted to get a class's probability. A row of -infinity has none: its p are 0.
template <class T>
RC_HOST_DEVICE T probability_shift(T lse) {
  return lse == T(-INFINITY) ? T(0) : lse;
}

}  // namespace RC_ISA
}  // namespace robustcore::density
