// Nothing is allocated or written before every check has passed.
#include "density/logsumexp.h"

#include "common/cpu.h"
#include "common/device.h"
#include "common/row_checks.h"

namespace robustcore::density {
namespace {

void logsumexp_cpu(const LogsumexpArgs& args) {
  run_units(RC_PICK(logsumexp), args, args.chunk.rows, args.chunk.elements());
}

void logsumexp_backward_cpu(const LogsumexpBackwardArgs& args) {
  run_units(RC_PICK(logsumexp_backward), args, args.chunk.rows, args.chunk.elements());
}

void logsumexp_double_backward_cpu(const LogsumexpDoubleBackwardArgs& args) {
  run_units(RC_PICK(logsumexp_double_backward), args, args.chunk.rows, args.chunk.elements());
}

// ---- of a matrix, any dtype and layout -----------------------------------------------------------

LogitsChunk whole(const Tensor& logits) {  // [N, K]
  check(logits.dim() == 2 && logits.size(1) >= 1, "logits: got shape ", shape_of(logits),
        ", want [N, K] with at least one class");
  LogitsChunk chunk{};
  chunk.rows = logits.size(0), chunk.classes = logits.size(1);
  chunk.logits = strided_view("logits", logits, logits.sizes());
  return chunk;
}

Tensor logsumexp(const Tensor& logits) {  // [N, K]
  LogsumexpArgs args{};
  args.chunk = whole(logits);
  Tensor lse =
      torch::stable::new_empty(logits, {logits.size(0)}, arithmetic_type("logits", logits));
  args.lse = lse.mutable_data_ptr();
  const OptionalTensor parts = row_parts(logits, args.chunk.rows, args.chunk.classes);
  args.plan.parts = data_or_null(parts);
  run(logits, args, logsumexp_cpu, RC_CUDA(logsumexp_cuda));
  return lse;
}

Tensor logsumexp_backward(const Tensor& grad,    // [N]
                          const Tensor& logits,  // [N, K]
                          const Tensor& lse) {   // [N]
  LogsumexpBackwardArgs args{};
  args.chunk = whole(logits);
  args.grad = per_row("grad", grad, logits, "logits");
  args.lse = per_row("lse", lse, logits, "logits");
  Tensor weights = torch::stable::new_empty(logits, logits.sizes());
  args.weights = weights.mutable_data_ptr();
  run(logits, args, logsumexp_backward_cpu, RC_CUDA(logsumexp_backward_cuda));
  return weights;
}

std::tuple<Tensor, Tensor> logsumexp_double_backward(const Tensor& v,       // [N, K]
                                                     const Tensor& grad,    // [N]
                                                     const Tensor& logits,  // [N, K]
                                                     const Tensor& lse) {   // [N]
  LogsumexpDoubleBackwardArgs args{};
  args.chunk = whole(logits);
  check_like("v", v, logits, "logits");
  args.v = strided_view("v", v, logits.sizes());
  args.grad = per_row("grad", grad, logits, "logits");
  args.lse = per_row("lse", lse, logits, "logits");
  args.reduce = true;
  Tensor dot =
      torch::stable::new_zeros(logits, {logits.size(0)}, arithmetic_type("logits", logits));
  Tensor curvature = torch::stable::new_empty(logits, logits.sizes());
  args.dot = dot.mutable_data_ptr();
  args.curvature = curvature.mutable_data_ptr();
  const OptionalTensor parts = row_parts(logits, args.chunk.rows, args.chunk.classes);
  args.plan.parts = data_or_null(parts);
  run(logits, args, logsumexp_double_backward_cpu, RC_CUDA(logsumexp_double_backward_cuda));
  return {dot, curvature};
}

// ---- of a chunk of classes, for linear_logsumexp; contiguous, float32 or float64 -----------------

void check_chunk_vector(const char* name, const Tensor& t, int64_t size, ScalarType type,
                        const Tensor& logits) {
  check_vector(name, t, size, type, logits, "logits");
  check(t.is_contiguous(), name, ": has to be contiguous");
}

LogitsChunk chunk_of(const Tensor& logits,           // [N, C]
                     const OptionalTensor& bias,     // [C]
                     const OptionalTensor& targets,  // [N]
                     int64_t first_class) {
  LogitsChunk chunk = whole(logits);
  check(logits.is_contiguous(), "logits: a chunk has to be contiguous");
  check(logits.scalar_type() == arithmetic_type("logits", logits), "logits: got ",
        name_of(logits.scalar_type()), ", want a chunk in float32 or float64");
  if (bias) {
    check_chunk_vector("bias", *bias, logits.size(1), logits.scalar_type(), logits);
    chunk.bias = bias->const_data_ptr();
  }
  if (targets) {
    check_chunk_vector("targets", *targets, logits.size(0), ScalarType::Long, logits);
    chunk.targets = targets->const_data_ptr<int64_t>();
    chunk.first_class = first_class;
  }
  return chunk;
}

// One value a row that comes with targets, and only then.
void check_goes_with_targets(const char* name, const OptionalTensor& t,
                             const OptionalTensor& targets) {
  check(t.has_value() == targets.has_value(), name, ": wanted with targets, and only then");
}

void logsumexp_chunk_(Tensor max, Tensor sum, Tensor lse,   // [N]
                      const OptionalTensor& target_logits,  // [N]
                      const Tensor& logits,                 // [N, C]
                      const OptionalTensor& bias,           // [C]
                      const OptionalTensor& targets,        // [N]
                      int64_t first_class) {
  LogsumexpArgs args{};
  args.chunk = chunk_of(logits, bias, targets, first_class);
  check_goes_with_targets("target_logits", target_logits, targets);
  const auto state = [&](const char* name, Tensor t) {
    check_chunk_vector(name, t, logits.size(0), logits.scalar_type(), logits);
    return t.mutable_data_ptr();
  };
  args.max = state("max", max);
  args.sum = state("sum", sum);
  args.lse = state("lse", lse);
  if (target_logits) args.target_logits = state("target_logits", *target_logits);
  args.first = first_class == 0;
  const OptionalTensor parts = row_parts(logits, args.chunk.rows, args.chunk.classes);
  args.plan.parts = data_or_null(parts);
  run(logits, args, logsumexp_cpu, RC_CUDA(logsumexp_cuda));
}

void logsumexp_chunk_weights_(Tensor logits,                      // [N, C]
                              const OptionalTensor& bias,         // [C]
                              const Tensor& grad,                 // [N]
                              const Tensor& lse,                  // [N]
                              const OptionalTensor& targets,      // [N]
                              const OptionalTensor& grad_target,  // [N]
                              int64_t first_class) {
  LogsumexpBackwardArgs args{};
  args.chunk = chunk_of(logits, bias, targets, first_class);
  args.grad = per_row("grad", grad, logits, "logits");
  args.lse = per_row("lse", lse, logits, "logits");
  check_goes_with_targets("grad_target", grad_target, targets);
  if (grad_target) args.grad_target = per_row("grad_target", *grad_target, logits, "logits");
  args.weights = logits.mutable_data_ptr();
  run(logits, args, logsumexp_backward_cpu, RC_CUDA(logsumexp_backward_cuda));
}

LogsumexpDoubleBackwardArgs double_backward_args(const Tensor& logits,           // [N, C]
                                                 const Tensor& v,                // [N, C]
                                                 const OptionalTensor& bias,     // [C]
                                                 const OptionalTensor& v_bias,   // [C]
                                                 const Tensor& lse,              // [N]
                                                 Tensor dot,                     // [N]
                                                 const OptionalTensor& targets,  // [N]
                                                 int64_t first_class) {
  LogsumexpDoubleBackwardArgs args{};
  args.chunk = chunk_of(logits, bias, targets, first_class);
  check_like("v", v, logits, "logits");
  check(v.is_contiguous(), "v: a chunk has to be contiguous");
  args.v = strided_view("v", v, logits.sizes());
  if (v_bias) {
    check_chunk_vector("v_bias", *v_bias, logits.size(1), logits.scalar_type(), logits);
    args.v_bias = v_bias->const_data_ptr();
  }
  args.lse = per_row("lse", lse, logits, "logits");
  check_chunk_vector("dot", dot, logits.size(0), logits.scalar_type(), logits);
  args.dot = dot.mutable_data_ptr();
  return args;
}

void logsumexp_chunk_dot_(Tensor dot,                    // [N]
                          const Tensor& logits,          // [N, C]
                          const Tensor& v,               // [N, C]
                          const OptionalTensor& bias,    // [C]
                          const OptionalTensor& v_bias,  // [C]
                          const Tensor& lse) {           // [N]
  LogsumexpDoubleBackwardArgs args =
      double_backward_args(logits, v, bias, v_bias, lse, dot, std::nullopt, 0);
  args.reduce = true;
  const OptionalTensor parts = row_parts(logits, args.chunk.rows, args.chunk.classes);
  args.plan.parts = data_or_null(parts);
  run(logits, args, logsumexp_double_backward_cpu, RC_CUDA(logsumexp_double_backward_cuda));
}

void logsumexp_chunk_curvature_(Tensor logits, Tensor v,            // [N, C]
                                const OptionalTensor& bias,         // [C]
                                const OptionalTensor& v_bias,       // [C]
                                const Tensor& grad,                 // [N]
                                const Tensor& lse,                  // [N]
                                const Tensor& dot,                  // [N]
                                const OptionalTensor& targets,      // [N]
                                const OptionalTensor& grad_target,  // [N]
                                int64_t first_class) {
  LogsumexpDoubleBackwardArgs args =
      double_backward_args(logits, v, bias, v_bias, lse, dot, targets, first_class);
  args.grad = per_row("grad", grad, logits, "logits");
  check_goes_with_targets("grad_target", grad_target, targets);
  if (grad_target) args.grad_target = per_row("grad_target", *grad_target, logits, "logits");
  args.curvature = v.mutable_data_ptr();
  args.weights = logits.mutable_data_ptr();
  run(logits, args, logsumexp_double_backward_cpu, RC_CUDA(logsumexp_double_backward_cuda));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("logsumexp(Tensor logits) -> Tensor");
  m.def("logsumexp_backward(Tensor grad, Tensor logits, Tensor lse) -> Tensor");
  m.def(
      "logsumexp_double_backward(Tensor v, Tensor grad, Tensor logits, Tensor lse) -> (Tensor, "
      "Tensor)");
  m.def(
      "logsumexp_chunk_(Tensor(a!) max, Tensor(b!) sum, Tensor(c!) lse, Tensor(d!)? target_logits, "
      "Tensor logits, Tensor? bias, Tensor? targets, SymInt first_class) -> ()");
  m.def(
      "logsumexp_chunk_weights_(Tensor(a!) logits, Tensor? bias, Tensor grad, Tensor lse, "
      "Tensor? targets, Tensor? grad_target, SymInt first_class) -> ()");
  m.def(
      "logsumexp_chunk_dot_(Tensor(a!) dot, Tensor logits, Tensor v, Tensor? bias, Tensor? v_bias, "
      "Tensor lse) -> ()");
  m.def(
      "logsumexp_chunk_curvature_(Tensor(a!) logits, Tensor(b!) v, Tensor? bias, Tensor? v_bias, "
      "Tensor grad, Tensor lse, Tensor dot, Tensor? targets, Tensor? grad_target, "
      "SymInt first_class) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("logsumexp", TORCH_BOX(&logsumexp));
  m.impl("logsumexp_backward", TORCH_BOX(&logsumexp_backward));
  m.impl("logsumexp_double_backward", TORCH_BOX(&logsumexp_double_backward));
  m.impl("logsumexp_chunk_", TORCH_BOX(&logsumexp_chunk_));
  m.impl("logsumexp_chunk_weights_", TORCH_BOX(&logsumexp_chunk_weights_));
  m.impl("logsumexp_chunk_dot_", TORCH_BOX(&logsumexp_chunk_dot_));
  m.impl("logsumexp_chunk_curvature_", TORCH_BOX(&logsumexp_chunk_curvature_));
}

}  // namespace robustcore::density
