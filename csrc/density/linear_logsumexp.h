// A linear layer's log-sum-exp and its derivatives on the tensor cores, without the logits: the
// arguments of the CUDA kernels. There is no such kernel for the CPU.
//
// A block has a tile of rows of `left` and meets the tiles of `right` in turn. Of each it makes the
// logits z = left right^T, out of them weights, and adds the weights times `value` to its result;
// logits and weights leave neither registers nor shared memory. One side is the rows of features,
// the other the classes; gradients of the weight have the classes to the left, so that a sum over
// rows is a block's own, in one order.
#pragma once

#include "density/logsumexp.h"

namespace robustcore::density {

enum class SweepWeights : int32_t {
  kOnline,     // exp(z - the maximum so far), and in the end a softmax
  kGradient,   // scale exp(z - shifts), plus grad_target where a class is a row's target
  kCurvature,  // scale exp(z - shifts) (u - along_shifts), u: z's derivative along cotangents
};

// Vectors are float32.
struct SweepSide {
  int64_t count;
  const void* data;          // [count, width]
  const void* along;         // [count, width], the cotangent of data; null: 0
  const float* shift;        // [count], null: 0; both sides' are subtracted from z
  const float* along_shift;  // [count], null: 0; from u
};

// All matrices contiguous and 16-aligned, float32 or bfloat16; a row is whole 16 bytes.
struct SweepArgs {
  SweepWeights weights;
  DType dtype, out_dtype;
  SweepSide left, right;
  bool classes_left;  // else rows
  // One for each of the rows, of kGradient and kCurvature
  const float* scale;        // null: 1
  const int64_t* targets;    // of kGradient; null: none
  const float* grad_target;  // with targets
  int64_t first_class;       // what the first row of left is; with classes_left
  const void* value;         // [right.count, width]; null: only sums of the weights are wanted
  int64_t width;
  int64_t splits;  // of right, each a block's; at most its tiles
  // Of each split, before they are merged in order
  float* max;    // [splits, left.count], of kOnline
  float* sums;   // [splits, left.count]
  float* parts;  // [splits, whole tiles of left.count, parts_pitch(width)]; with value
  // The results
  float* lse;       // [left.count], of kOnline
  float* row_sums;  // [left.count], of the others: of the weights; null: not wanted
  void* out;        // [left.count, width] of out_dtype: weights value; with value
  bool add;         // to what out holds
};

constexpr int64_t kSweepRows = 128;  // of either side, in a tile

constexpr int64_t parts_pitch(int64_t width) {
  return ceil_div(width, kSweepRows) * kSweepRows;
}

void linear_sweep_cuda(const SweepArgs& args, void* stream);

}  // namespace robustcore::density
