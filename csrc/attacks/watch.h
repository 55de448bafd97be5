// What an evaluation tells of a row of an attack, all of it in one pass: whether the row is fooled
// and found, a gradient or logits that lead nowhere, and its point of highest loss.
#pragma once

#include "attacks/rows.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::attacks {

// Everything but x, the gradient, `ahead` and `counts` is updated in place.
struct WatchArgs {
  int64_t rows, elements;
  int64_t element_size;         // in bytes, 2, 4 or 8
  bool is_double;               // of the values of one a row; else float
  const void* x;                // [rows, elements], as the next two
  StridedView grad;             // data null: none
  void *best, *best_grad;       // null: not kept
  void* loss;                   // [rows], at x; infinite from now on where the row is found
  const void* ahead;            // [rows], above 0 where the row is misclassified
  const bool* counts;           // [rows], whether that counts; null: everywhere
  void* best_loss;              // [rows]
  bool *found, *fooled;         // [rows]: once, and now
  bool* zero;                   // [rows]: no gradient at the first step
  bool *nan_grad, *nan_logits;  // [rows]: ever
  int64_t* age;                 // [rows]: evaluations before the one that finds
};

// A unit is a row. `scratch` holds a row of the arithmetic type.
RC_VARIANTS(attack_watch, const WatchArgs& args, float* scratch, int64_t begin, int64_t end);
void attack_watch_cuda(const WatchArgs& args, void* stream);

inline namespace RC_ISA {

// A row's state after the evaluation; `row` brings sums and grad(k, n).
template <class Row>
struct WatchedRow {
  using T = typename Row::T;
  using L = typename Row::L;
  T loss, best_loss;
  int64_t age;
  bool found, fooled, zero, nan_grad, nan_logits;
  bool higher;  // x is the new best

  RC_HOST_DEVICE WatchedRow(const WatchArgs& args, int64_t at, Row& row)
      : loss(static_cast<const T*>(args.loss)[at]),
        best_loss(static_cast<const T*>(args.best_loss)[at]),
        age(args.age[at]),
        found(args.found[at]),
        fooled(static_cast<const T*>(args.ahead)[at] > T(0)),
        zero(args.zero[at]),
        nan_grad(args.nan_grad[at]),
        nan_logits(args.nan_logits[at]),
        higher(false) {
    const T ahead = static_cast<const T*>(args.ahead)[at];
    nan_logits = nan_logits || ahead != ahead;
    found = found || (fooled && (!args.counts || args.counts[at]));
    if (found) loss = T(INFINITY);
    if (args.grad.data) {
      const Sums sums = row.sums(args.elements, [&](int64_t k, int n, auto& a, auto& b) {
        const auto none = L::splat(T(0)), g = row.grad(k, n);
        a = a + g * none;  // NaN where an element is not finite
        b = b + (g == none ? none : L::splat(T(1)));
      });
      nan_grad = nan_grad || sums.a != sums.a;
      zero = zero || (age == 0 && sums.b == 0);
    }
    if (!found) ++age;
    if (args.best) higher = loss > best_loss;
    if (higher) best_loss = loss;
  }
  RC_HOST_DEVICE void store(const WatchArgs& args, int64_t at) const {
    static_cast<T*>(args.loss)[at] = loss;
    static_cast<T*>(args.best_loss)[at] = best_loss;
    args.age[at] = age;
    args.found[at] = found, args.fooled[at] = fooled, args.zero[at] = zero;
    args.nan_grad[at] = nan_grad, args.nan_logits[at] = nan_logits;
  }
};

}  // namespace RC_ISA
}  // namespace robustcore::attacks
