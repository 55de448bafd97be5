// Nothing is allocated or written before every check has passed.
#include "attacks/step.h"

#include <algorithm>
#include <cmath>

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void step_cpu(const StepArgs& args) {
  // Twice the floats hold as many doubles.
  run_with_scratch(RC_PICK(step), args, args.rows, 2 * scratch_elements(args),
                   std::max<int64_t>(args.elements, 1));
}

// The rows of linf are elements side by side, in whatever order all its images lie.
void flatten(StridedView& view) {
  view.dims = 1, view.sizes[0] = view.image_stride, view.strides[0] = 1;
}

// What an op takes beside its images.
struct StepArguments {
  int64_t norm;
  bool exact;
  double eps;
  const OptionalTensor& eps_rows;  // [N], in place of eps
  double step_size;
  const OptionalTensor& step_rows;  // [N]
  double topk;
  const OptionalTensor& topk_rows;  // [N]
  double momentum;
  const OptionalTensor& momentum_rows;  // [N]
  double low, high;
};

// Everything about a step but its output.
StepArgs step_args(const Tensor& x,                 // [N, *D]
                   const OptionalTensor& grad,      // [N, *D]
                   const Tensor& x0,                // [N, *D]
                   const OptionalTensor& previous,  // [N, *D]
                   const StepArguments& from) {
  check(x.dim() >= 1, "x: got a 0-d tensor, want [N, *D]");
  StepArgs args{};
  args.rows = x.size(0), args.elements = elements_of(x, 1);
  args.channels = x.dim() > 2 ? std::max<int64_t>(x.size(1), 1) : 1;
  args.norm = norm_of(from.norm), args.exact = from.exact;
  const auto image = [&](const char* name, const Tensor& t) {
    if (&t != &x) check_like(name, t, x, "x");
    return strided_view(name, t, x.sizes());
  };
  args.x = image("x", x), args.x0 = image("x0", x0);
  if (grad) args.grad = image("grad", *grad);
  if (previous) args.previous = image("previous", *previous);
  check(!previous || has_momentum(args.norm), "previous: there is no momentum in l1 and l0");
  check_eps(args.norm, from.eps);
  check(from.step_size >= 0 && std::isfinite(from.step_size), "step_size: got ", from.step_size,
        ", want a finite number, at least 0");
  check(from.topk > 0 && from.topk <= 1, "topk: got ", from.topk, ", want a share in (0, 1]");
  check(from.momentum >= 0 && from.momentum <= 1, "momentum: got ", from.momentum,
        ", want a number in [0, 1]");
  args.eps = row_parameter("eps", from.eps, from.eps_rows, x);
  args.step_size = row_parameter("step_size", from.step_size, from.step_rows, x);
  args.topk = row_parameter("topk", from.topk, from.topk_rows, x);
  args.momentum = row_parameter("momentum", from.momentum, from.momentum_rows, x);
  const Box box = box_within(from.low, from.high, args.x.dtype);
  args.low = box.low, args.high = box.high;
  return args;
}

void step_into(StepArgs args, const Tensor& x, const OptionalTensor& grad, const Tensor& x0,
               const OptionalTensor& previous, Tensor& out) {
  args.place = strided_view("out", out, x.sizes());
  args.out = out.mutable_data_ptr();
  if (args.norm == Norm::kLinf && x.dim() == 4 && channels_last(x) && channels_last(out) &&
      channels_last(x0) && (!grad || channels_last(*grad)) &&
      (!previous || channels_last(*previous))) {
    for (StridedView* view : {&args.x, &args.x0, &args.grad, &args.previous, &args.place}) {
      flatten(*view);
    }
  }
  if (out.numel() > 0) run(x, args, step_cpu, RC_CUDA(step_cuda));
}

#define RC_STEP_PARAMETERS                                                                \
  int64_t norm, bool exact, double eps, const OptionalTensor &eps_rows, double step_size, \
      const OptionalTensor &step_rows, double topk, const OptionalTensor &topk_rows,      \
      double momentum, const OptionalTensor &momentum_rows, double low, double high
#define RC_STEP_ARGUMENTS                                                                       \
  StepArguments {                                                                               \
    norm, exact, eps, eps_rows, step_size, step_rows, topk, topk_rows, momentum, momentum_rows, \
        low, high                                                                               \
  }
#define RC_STEP_SCHEMA                                                                     \
  "Tensor x, Tensor? grad, Tensor x0, Tensor? previous, int norm, bool exact, float eps, " \
  "Tensor? eps_rows, float step_size, Tensor? step_rows, float topk, Tensor? topk_rows, "  \
  "float momentum, Tensor? momentum_rows, float low, float high"

Tensor attack_step(const Tensor& x,                 // [N, *D]
                   const OptionalTensor& grad,      // [N, *D]
                   const Tensor& x0,                // [N, *D]
                   const OptionalTensor& previous,  // [N, *D]
                   RC_STEP_PARAMETERS) {
  const StepArgs args = step_args(x, grad, x0, previous, RC_STEP_ARGUMENTS);
  Tensor out = empty_like_images(x);
  step_into(args, x, grad, x0, previous, out);
  return out;
}

void attack_step_out(const Tensor& x,                 // [N, *D]
                     const OptionalTensor& grad,      // [N, *D]
                     const Tensor& x0,                // [N, *D]
                     const OptionalTensor& previous,  // [N, *D]
                     RC_STEP_PARAMETERS,
                     Tensor out) {  // [N, *D]
  const StepArgs args = step_args(x, grad, x0, previous, RC_STEP_ARGUMENTS);
  check_output("out", out, x);
  step_into(args, x, grad, x0, previous, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("attack_step(" RC_STEP_SCHEMA ") -> Tensor");
  m.def("attack_step_out(" RC_STEP_SCHEMA ", Tensor(a!) out) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("attack_step", TORCH_BOX(&attack_step));
  m.impl("attack_step_out", TORCH_BOX(&attack_step_out));
}

}  // namespace robustcore::attacks
