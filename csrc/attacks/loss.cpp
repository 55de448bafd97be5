// Nothing is allocated or written before every check has passed.
#include "attacks/loss.h"

#include <tuple>

#include "attacks/checks.h"
#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::attacks {
namespace {

void attack_loss_cpu(const LossArgs& args) {
  // A row and its slope; twice the floats hold as many doubles.
  run_with_scratch(RC_PICK(attack_loss), args, args.rows, 4 * args.classes, 8 * args.classes);
}

std::tuple<Tensor, Tensor, Tensor> attack_loss(const Tensor& logits,           // [N, K]
                                               const Tensor& labels,           // [N] int64
                                               const OptionalTensor& targets,  // [N] int64
                                               int64_t loss, bool lowered, double rounding) {
  check(logits.dim() == 2 && logits.size(1) >= 2, "logits: got shape ", shape_of(logits),
        ", want [N, K], K at least 2");
  check(logits.size(1) < INT32_MAX, "logits: got ", logits.size(1), " classes, want below 2**31");
  check(loss >= 0 && loss <= static_cast<int64_t>(Loss::kDlr), "loss: got ", loss, ", want 0 to 2");
  LossArgs args{};
  args.rows = logits.size(0), args.classes = logits.size(1);
  args.loss = static_cast<Loss>(loss), args.lowered = lowered, args.rounding = rounding;
  args.logits = strided_view("logits", logits, logits.sizes());
  args.labels = indices_of("labels", labels, logits, "logits");
  if (targets) args.targets = indices_of("targets", *targets, logits, "logits");
  const ScalarType type = arithmetic_type("logits", logits);
  const std::vector<int64_t> rows{args.rows}, sizes{args.rows, args.classes};
  Tensor value = empty_on(logits, rows, dense_strides(rows, false), type);
  Tensor slope = empty_on(logits, sizes, dense_strides(sizes, false), logits.scalar_type());
  Tensor ahead = empty_on(logits, rows, dense_strides(rows, false), type);
  args.value = value.mutable_data_ptr(), args.ahead = ahead.mutable_data_ptr();
  args.place = strided_view("slope", slope, slope.sizes());
  args.slope = slope.mutable_data_ptr();
  if (args.rows > 0) run(logits, args, attack_loss_cpu, RC_CUDA(attack_loss_cuda));
  return {value, slope, ahead};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "attack_loss(Tensor logits, Tensor labels, Tensor? targets, int loss, bool lowered, "
      "float rounding) -> (Tensor value, Tensor slope, Tensor ahead)");
}

RC_LIBRARY_IMPL(m) {
  m.impl("attack_loss", TORCH_BOX(&attack_loss));
}

}  // namespace robustcore::attacks
