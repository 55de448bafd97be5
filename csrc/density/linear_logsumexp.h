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

// How a sweep of at most `blocks` at a time goes: right is split where left has too few tiles for
// them, left is taken in parts where it has more. The float32 sums of a part are the memory it
// takes.
struct SweepPlan {
  int64_t splits, at_once;  // rows of left, whole tiles

  int64_t numbers() const {
    return splits * at_once;
  }
};

inline SweepPlan plan_of(const SweepArgs& args, int64_t blocks) {
  const int64_t tiles = ceil_div(args.left.count, kSweepRows);
  const int64_t most = ceil_div(args.right.count, kSweepRows), wanted = blocks / tiles;
  return {wanted < 1      ? 1
          : wanted < most ? wanted
                          : most,
          (tiles < blocks ? tiles : blocks) * kSweepRows};
}

template <class T>
T* from_row(T* numbers, int64_t row) {
  return numbers ? numbers + row : nullptr;
}
inline const void* from_row(const void* data, int64_t row, int64_t bytes) {
  return data ? static_cast<const char*>(data) + row * bytes : nullptr;
}

// What the rows of left from `first` on take, `at_once` of them or those there are.
inline SweepArgs part_of(SweepArgs args, int64_t first, int64_t at_once) {
  const auto row_bytes = [&](DType dtype) {
    return args.width * (dtype == DType::kFloat32 ? 4 : 2);
  };
  SweepSide& left = args.left;
  const int64_t bytes = row_bytes(args.dtype), remain = left.count - first;
  left.count = remain < at_once ? remain : at_once;
  left.data = from_row(left.data, first, bytes), left.along = from_row(left.along, first, bytes);
  left.shift = from_row(left.shift, first), left.along_shift = from_row(left.along_shift, first);
  if (args.classes_left) {
    args.first_class += first;
  } else {
    args.scale = from_row(args.scale, first), args.targets = from_row(args.targets, first);
    args.grad_target = from_row(args.grad_target, first);
  }
  args.lse = from_row(args.lse, first), args.row_sums = from_row(args.row_sums, first);
  args.out = const_cast<void*>(from_row(args.out, first, row_bytes(args.out_dtype)));
  return args;
}

void linear_sweep_cuda(const SweepArgs& args, void* stream);

}  // namespace robustcore::density
