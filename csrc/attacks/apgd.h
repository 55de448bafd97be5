// APGD's bookkeeping after a step (Croce and Hein, 2020), a row by itself: its best point, and at a
// checkpoint whether it halves its steps and goes back there.
#pragma once

#include "common/dtype.h"
#include "common/variants.h"

namespace robustcore::attacks {

// Everything but the loss and the widths is updated in place.
struct ApgdArgs {
  int64_t rows, elements;
  int64_t element_size;         // in bytes, 2, 4 or 8
  bool is_double;               // of the values of one a row; else float
  void *x, *grad;               // [rows, elements]: where the row goes on from
  void *best, *best_grad;       // [rows, elements]
  const void* loss;             // [rows], at x
  void *best_loss, *last_loss;  // [rows]
  void *step_size, *rises;      // [rows]; rises: steps since the last checkpoint that raised it
  void* checked;                // [rows]: the best loss at the last checkpoint
  bool* cut;                    // [rows]: whether that one halved
  const int64_t* width;         // [rows]: steps since the last checkpoint, 0: this is none
  double rho;                   // the share of steps that has to raise the loss
};

// A unit is a row.
RC_VARIANTS(apgd_update, const ApgdArgs& args, int64_t begin, int64_t end);
void apgd_update_cuda(const ApgdArgs& args, void* stream);

inline namespace RC_ISA {

// A row's state after the step.
template <class T>
struct ApgdRow {
  T loss, best_loss, step_size, rises, checked;
  bool cut;
  bool higher, back;  // x is the new best; the row goes back there

  RC_HOST_DEVICE ApgdRow(const ApgdArgs& args, int64_t at)
      : loss(static_cast<const T*>(args.loss)[at]),
        best_loss(static_cast<const T*>(args.best_loss)[at]),
        step_size(static_cast<const T*>(args.step_size)[at]),
        rises(static_cast<const T*>(args.rises)[at]),
        checked(static_cast<const T*>(args.checked)[at]),
        cut(args.cut[at]),
        higher(loss > best_loss),
        back(false) {
    if (loss > static_cast<const T*>(args.last_loss)[at]) rises += T(1);
    if (higher) best_loss = loss;
    const int64_t width = args.width[at];
    if (width <= 0) return;
    const bool stuck = !cut && checked >= best_loss;
    back = stuck || static_cast<double>(rises) <= args.rho * static_cast<double>(width);
    cut = back, checked = best_loss, rises = T(0);
    if (back) step_size *= T(0.5);
  }
  RC_HOST_DEVICE void store(const ApgdArgs& args, int64_t at) const {
    static_cast<T*>(args.last_loss)[at] = loss;
    static_cast<T*>(args.best_loss)[at] = best_loss;
    static_cast<T*>(args.step_size)[at] = step_size;
    static_cast<T*>(args.rises)[at] = rises;
    static_cast<T*>(args.checked)[at] = checked;
    args.cut[at] = cut;
  }
};

}  // namespace RC_ISA
}  // namespace robustcore::attacks
