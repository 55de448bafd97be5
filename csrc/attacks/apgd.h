// A step of APGD (Croce and Hein, 2020), a row by itself: what the evaluation tells, at a
// checkpoint whether the row halves its steps and goes back to its best point, and the step from
// there.
#pragma once

#include "attacks/step.h"
#include "attacks/watch.h"

namespace robustcore::attacks {

// Everything but the gradient, x0, `ahead`, `counts` and the widths is updated in place.
struct ApgdArgs {
  WatchArgs watch;            // of the points that were evaluated; with best and best_grad
  StepArgs step;              // of linf or l2, over `previous`; its step_size is the rows' own
  void* x;                    // [rows, elements]: where rows are; `step` has it too
  void *last_loss, *rises;    // [rows]; rises: steps since the last checkpoint that raised it
  void *step_size, *checked;  // [rows]; checked: the best loss at the last checkpoint
  bool* cut;                  // [rows]: whether that one halved
  const int64_t* widths;      // [ages]: steps since the last checkpoint at that age, 0: none
  int64_t ages;
  double rho;       // the share of steps that has to raise the loss
  double momentum;  // of every step but a row's first
};

// A unit is a row. `scratch` holds scratch_elements() of the step.
RC_VARIANTS(apgd_step, const ApgdArgs& args, float* scratch, int64_t begin, int64_t end);
void apgd_step_cuda(const ApgdArgs& args, void* stream);

inline namespace RC_ISA {

// A row's state before the step.
template <class T>
struct ApgdRow {
  T loss, step_size, rises, checked;
  bool cut;
  bool back;    // to the best point
  bool swings;  // with momentum

  template <class Watched>
  RC_HOST_DEVICE ApgdRow(const ApgdArgs& args, int64_t at, const Watched& watched)
      : loss(watched.loss),
        step_size(static_cast<const T*>(args.step_size)[at]),
        rises(static_cast<const T*>(args.rises)[at]),
        checked(static_cast<const T*>(args.checked)[at]),
        cut(args.cut[at]),
        back(false),
        swings(watched.age > 1) {
    if (loss > static_cast<const T*>(args.last_loss)[at]) rises += T(1);
    const bool known = watched.age >= 0 && watched.age < args.ages;
    const int64_t width = known ? args.widths[watched.age] : 0;
    if (width <= 0) return;
    const bool stuck = !cut && checked >= watched.best_loss;
    back = stuck || static_cast<double>(rises) <= args.rho * static_cast<double>(width);
    cut = back, checked = watched.best_loss, rises = T(0);
    if (back) step_size *= T(0.5);
  }
  RC_HOST_DEVICE void store(const ApgdArgs& args, int64_t at) const {
    static_cast<T*>(args.last_loss)[at] = loss;
    static_cast<T*>(args.step_size)[at] = step_size;
    static_cast<T*>(args.rises)[at] = rises;
    static_cast<T*>(args.checked)[at] = checked;
    args.cut[at] = cut;
  }
  RC_HOST_DEVICE StepNumbers numbers(const ApgdArgs& args) const {
    return {args.step.eps.value, static_cast<double>(step_size), 1.0, swings ? args.momentum : 1.0};
  }
};

}  // namespace RC_ISA
}  // namespace robustcore::attacks
