// Softmax attention with its first two derivatives, tile by tile: the arguments of the kernels and
// the arithmetic both devices run.
//
// S = scale q k^T + mask, P = softmax(S), out = P v. Of the gradient `grad` of out:
//   dP = grad v^T, delta_i = <grad_i, out_i>, dS = P (dP - delta),
//   d_q = scale dS k, d_k = scale dS^T q, d_v = P^T grad.
// Of cotangents v_q, v_k, v_v of these three, by T = scale (v_q k^T + q v_k^T), W = grad v_v^T,
// t_i = sum_j P T and rest_i = sum_j P (dP T + W) - delta_i t_i:
//   H = P ((dP - delta) (T - t) + W - rest), U = P (T - t),
//   d_grad = U v + P v_v, d_q = scale (dS v_k + H k), d_k = scale (dS^T v_q + H^T q), d_v = U^T
//   grad.
//
// Every sum is a chain of fused multiply-adds in the order of its index, in tiles of kTile rows and
// columns where two products share one, so that bits depend neither on the device nor on threads.
#pragma once

#include "density/logsumexp.h"

namespace robustcore::density {

constexpr int kTile = 32;

// All contiguous but the mask, and all float32 or all float64.
struct AttentionInputs {
  int64_t batch, heads, rows, columns, dim, value_dim;
  const void *q, *k, *v;  // [batch, heads, rows, dim], [.., columns, dim], [.., columns, value_dim]
  const void* mask;       // [batch, heads, rows, columns], added to the logits; null: none
  int64_t mask_strides[4];
  bool causal;  // a row sees the columns up to its own index
  bool float64;
  double scale;
};

struct AttentionArgs {
  AttentionInputs in;
  void* out;  // [batch, heads, rows, value_dim]
  void* lse;  // [batch, heads, rows]: log sum_j exp S; -infinity where a row sees nothing, out is 0
};

struct AttentionBackwardArgs {
  AttentionInputs in;
  const void *grad, *out, *lse;
  void *d_q, *d_k, *d_v;  // like q, k and v; d_k and d_v hold zeros before
  void* stats;            // [batch, heads, rows, kStats]
};

struct AttentionDoubleBackwardArgs {
  AttentionInputs in;
  const void *grad, *out, *lse;
  const void *v_q, *v_k, *v_v;     // like q, k and v
  void *d_grad, *d_q, *d_k, *d_v;  // like out, q, k and v; d_k and d_v hold zeros before
  void* stats;                     // [batch, heads, rows, kStats]
};

constexpr int kStats = 4;  // of a row: lse (as what is subtracted), delta, t, rest

// A unit is a tile of rows forward, and a head backward: one thread sums what columns get.
RC_VARIANTS(attention, const AttentionArgs& args, float* scratch, int64_t begin, int64_t end);
RC_VARIANTS(attention_backward, const AttentionBackwardArgs& args, float* scratch, int64_t begin,
            int64_t end);
RC_VARIANTS(attention_double_backward, const AttentionDoubleBackwardArgs& args, float* scratch,
            int64_t begin, int64_t end);
void attention_cuda(const AttentionArgs& args, void* stream);
void attention_backward_cuda(const AttentionBackwardArgs& args, void* stream);
void attention_double_backward_cuda(const AttentionDoubleBackwardArgs& args, void* stream);

// Floats of scratch of a thread: `strips` matrices of all columns by a tile of rows, and as many
// tiles of rows, transposed, as are multiplied with columns.
inline int64_t attention_scratch(const AttentionInputs& in, int strips, int tiles) {
  const int64_t widest = in.dim > in.value_dim ? in.dim : in.value_dim;
  return kTile * (strips * in.columns + tiles * widest + kStats) * (in.float64 ? 2 : 1);
}

inline namespace RC_ISA {

template <class L>
RC_HOST_DEVICE typename L::Float score_gradient(typename L::Float p, typename L::Float dp,
                                                typename L::Float delta) {
  return p * (dp - delta);
}

template <class L>
RC_HOST_DEVICE typename L::Float score_curvature(typename L::Float p, typename L::Float dp,
                                                 typename L::Float delta, typename L::Float dt,
                                                 typename L::Float w, typename L::Float rest) {
  return p * L::fma(dp - delta, dt, w - rest);
}

// The mask's first element for a head.
template <class T>
RC_HOST_DEVICE const T* mask_of(const AttentionInputs& in, int64_t head) {
  if (!in.mask) return nullptr;
  return static_cast<const T*>(in.mask) + head / in.heads * in.mask_strides[0] +
         head % in.heads * in.mask_strides[1];
}

}  // namespace RC_ISA
}  // namespace robustcore::density
