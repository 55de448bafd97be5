// Schemas and checks of the density ops. Nothing is allocated or written before every check has
// passed.
#include <cmath>

#include "common/cuda_stream.h"
#include "common/tensor.h"
#include "density/launch.h"

namespace robustcore::density {
namespace {

// What sums are taken in, and what values of one a row come in.
ScalarType arithmetic_type(const char* name, const Tensor& t) {
  return floating_dtype(name, t.scalar_type()) == DType::kFloat64 ? ScalarType::Double
                                                                  : ScalarType::Float;
}

void check_matrix(const char* name, const Tensor& t) {
  check(t.dim() == 2 && t.size(1) >= 1, name, ": got shape ", shape_of(t),
        ", want [N, K] with at least one class");
}

void check_vector(const char* name, const Tensor& t, int64_t size, ScalarType type,
                  const Tensor& like, const char* like_name) {
  check(t.dim() == 1 && t.size(0) == size && t.scalar_type() == type, name, ": got ",
        torch::headeronly::toString(t.scalar_type()), " of shape ", shape_of(t), ", want ",
        torch::headeronly::toString(type), " of shape [", size, "]");
  check_same_device(name, t, like, like_name);
}

void check_like(const char* name, const Tensor& t, const Tensor& like, const char* like_name) {
  bool same = t.dim() == like.dim() && t.scalar_type() == like.scalar_type();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == like.size(d);
  check(same, name, ": got ", torch::headeronly::toString(t.scalar_type()), " of shape ",
        shape_of(t), ", want the shape ", shape_of(like), " and dtype of ", like_name);
  check_same_device(name, t, like, like_name);
}

PerRow per_row(const char* name, const Tensor& t, const Tensor& like, const char* like_name) {
  check_vector(name, t, like.size(0), arithmetic_type(like_name, like), like, like_name);
  return {t.const_data_ptr(), t.stride(0)};
}

Logits logits_of(const Tensor& z) {
  check_matrix("logits", z);
  Logits logits{};
  logits.rows = z.size(0), logits.classes = z.size(1);
  logits.z = strided_view("logits", z, z.sizes());
  return logits;
}

// Bias and targets of a chunk of classes; a vector is contiguous.
Logits chunk_of(const Tensor& z, const OptionalTensor& bias, const OptionalTensor& targets,
                int64_t first_class) {
  Logits logits = logits_of(z);
  check(z.is_contiguous(), "logits: a chunk has to be contiguous");
  check(z.scalar_type() == arithmetic_type("logits", z), "logits: got ",
        torch::headeronly::toString(z.scalar_type()), ", want a chunk in float32 or float64");
  if (bias) {
    check_vector("bias", *bias, z.size(1), z.scalar_type(), z, "logits");
    check(bias->is_contiguous(), "bias: a chunk has to be contiguous");
    logits.bias = bias->const_data_ptr();
  }
  if (targets) {
    check_vector("targets", *targets, z.size(0), ScalarType::Long, z, "logits");
    check(targets->is_contiguous(), "targets: have to be contiguous");
    logits.targets = targets->const_data_ptr<int64_t>();
    logits.first_class = first_class;
  }
  return logits;
}

template <class Cpu, class Cuda>
void launch(const Tensor& on, const Cpu& cpu, const Cuda& cuda) {
  if (on.numel() == 0) return;
  if (on.is_cuda()) {
    on_cuda(on, cuda);
  } else {
    cpu();
  }
}

#define RC_LAUNCH_ON(tensor, name, args) \
  launch(tensor, [&] { name##_cpu(args); }, [&](void* stream) { name##_cuda(args, stream); })

// ---- log-sum-exp ---------------------------------------------------------------------------------

Tensor logsumexp(const Tensor& logits) {  // [N, K]
  LseArgs args{};
  args.logits = logits_of(logits);
  Tensor lse =
      torch::stable::new_empty(logits, {logits.size(0)}, arithmetic_type("logits", logits));
  args.lse = lse.mutable_data_ptr();
  RC_LAUNCH_ON(logits, lse, args);
  return lse;
}

Tensor logsumexp_backward(const Tensor& grad,    // [N]
                          const Tensor& logits,  // [N, K]
                          const Tensor& lse) {   // [N]
  LseGradArgs args{};
  args.logits = logits_of(logits);
  args.grad = per_row("grad", grad, logits, "logits");
  args.lse = per_row("lse", lse, logits, "logits");
  Tensor out = torch::stable::new_empty(logits, logits.sizes());
  args.weights = out.mutable_data_ptr();
  args.dtype = args.logits.z.dtype;
  RC_LAUNCH_ON(logits, lse_grad, args);
  return out;
}

std::tuple<Tensor, Tensor> logsumexp_double_backward(const Tensor& v,       // [N, K]
                                                     const Tensor& grad,    // [N]
                                                     const Tensor& logits,  // [N, K]
                                                     const Tensor& lse) {   // [N]
  LseHessArgs args{};
  args.logits = logits_of(logits);
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
  args.dtype = args.logits.z.dtype;
  RC_LAUNCH_ON(logits, lse_hess, args);
  return {dot, curvature};
}

// ---- the same on a chunk of classes, for linear_logsumexp ----------------------------------------

void logsumexp_chunk_(Tensor max, Tensor sum, Tensor lse,   // [N]
                      const OptionalTensor& target_logits,  // [N]
                      const Tensor& logits,                 // [N, C]
                      const OptionalTensor& bias,           // [C]
                      const OptionalTensor& targets,        // [N]
                      int64_t first_class) {
  LseArgs args{};
  args.logits = chunk_of(logits, bias, targets, first_class);
  check(static_cast<bool>(targets) == static_cast<bool>(target_logits),
        "target_logits: wanted with targets, and only then");
  const auto state = [&](const char* name, Tensor& t) {
    check_vector(name, t, logits.size(0), logits.scalar_type(), logits, "logits");
    check(t.is_contiguous(), name, ": has to be contiguous");
    return t.mutable_data_ptr();
  };
  args.max = state("max", max);
  args.sum = state("sum", sum);
  args.lse = state("lse", lse);
  if (target_logits) {
    Tensor out = *target_logits;
    args.target_logits = state("target_logits", out);
  }
  args.first = first_class == 0;
  RC_LAUNCH_ON(logits, lse, args);
}

void logsumexp_chunk_weights_(Tensor logits,                      // [N, C]
                              const OptionalTensor& bias,         // [C]
                              const Tensor& grad,                 // [N]
                              const Tensor& lse,                  // [N]
                              const OptionalTensor& targets,      // [N]
                              const OptionalTensor& grad_target,  // [N]
                              int64_t first_class) {
  LseGradArgs args{};
  args.logits = chunk_of(logits, bias, targets, first_class);
  args.grad = per_row("grad", grad, logits, "logits");
  args.lse = per_row("lse", lse, logits, "logits");
  check(static_cast<bool>(targets) == static_cast<bool>(grad_target),
        "grad_target: wanted with targets, and only then");
  if (grad_target) args.grad_target = per_row("grad_target", *grad_target, logits, "logits");
  args.weights = logits.mutable_data_ptr();
  args.dtype = args.logits.z.dtype;
  RC_LAUNCH_ON(logits, lse_grad, args);
}

LseHessArgs hess_args(const Tensor& logits, const Tensor& v, const OptionalTensor& bias,
                      const OptionalTensor& v_bias, const Tensor& lse, Tensor& dot,
                      const OptionalTensor& targets, int64_t first_class) {
  LseHessArgs args{};
  args.logits = chunk_of(logits, bias, targets, first_class);
  check_like("v", v, logits, "logits");
  check(v.is_contiguous(), "v: a chunk has to be contiguous");
  args.v = strided_view("v", v, logits.sizes());
  if (v_bias) {
    check_vector("v_bias", *v_bias, logits.size(1), logits.scalar_type(), logits, "logits");
    check(v_bias->is_contiguous(), "v_bias: a chunk has to be contiguous");
    args.v_bias = v_bias->const_data_ptr();
  }
  args.lse = per_row("lse", lse, logits, "logits");
  check_vector("dot", dot, logits.size(0), logits.scalar_type(), logits, "logits");
  check(dot.is_contiguous(), "dot: has to be contiguous");
  args.dot = dot.mutable_data_ptr();
  return args;
}

void logsumexp_chunk_dot_(Tensor dot,                    // [N]
                          const Tensor& logits,          // [N, C]
                          const Tensor& v,               // [N, C]
                          const OptionalTensor& bias,    // [C]
                          const OptionalTensor& v_bias,  // [C]
                          const Tensor& lse) {           // [N]
  LseHessArgs args = hess_args(logits, v, bias, v_bias, lse, dot, std::nullopt, 0);
  args.reduce = true;
  RC_LAUNCH_ON(logits, lse_hess, args);
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
  Tensor read = dot;
  LseHessArgs args = hess_args(logits, v, bias, v_bias, lse, read, targets, first_class);
  args.grad = per_row("grad", grad, logits, "logits");
  check(static_cast<bool>(targets) == static_cast<bool>(grad_target),
        "grad_target: wanted with targets, and only then");
  if (grad_target) args.grad_target = per_row("grad_target", *grad_target, logits, "logits");
  args.curvature = v.mutable_data_ptr();
  args.weights = logits.mutable_data_ptr();
  args.dtype = args.logits.z.dtype;
  RC_LAUNCH_ON(logits, lse_hess, args);
}

// ---- norms ---------------------------------------------------------------------------------------

int64_t elements_of(const Tensor& t) {
  int64_t n = 1;
  for (int64_t d = 1; d < t.dim(); ++d) n *= t.size(d);
  return n;
}

void check_norm(const Tensor& grad, double p) {
  check(grad.dim() >= 1, "grad: got a 0-d tensor, want [N, *D]");
  check(p >= 1, "p: got ", p, ", want at least 1 (infinity included)");
}

Tensor grad_norm(const Tensor& grad,  // [N, *D]
                 double p) {
  check_norm(grad, p);
  NormArgs args{};
  args.rows = grad.size(0), args.elements = elements_of(grad);
  args.g = strided_view("grad", grad, grad.sizes());
  args.p = p;
  Tensor norm = torch::stable::new_zeros(grad, {grad.size(0)}, arithmetic_type("grad", grad));
  args.norm = norm.mutable_data_ptr();
  RC_LAUNCH_ON(grad, norm, args);
  return norm;
}

Tensor grad_norm_backward(const Tensor& upstream,  // [N]
                          const Tensor& grad,      // [N, *D]
                          const Tensor& norm,      // [N]
                          double p) {
  check_norm(grad, p);
  NormGradArgs args{};
  args.rows = grad.size(0), args.elements = elements_of(grad);
  args.g = strided_view("grad", grad, grad.sizes());
  args.p = p;
  args.grad = per_row("upstream", upstream, grad, "grad");
  args.norm = per_row("norm", norm, grad, "grad");
  Tensor out = torch::stable::new_empty(grad, grad.sizes());
  args.dual = out.mutable_data_ptr();
  args.dtype = args.g.dtype;
  RC_LAUNCH_ON(grad, norm_grad, args);
  return out;
}

std::tuple<Tensor, Tensor> grad_norm_double_backward(const Tensor& v,         // [N, *D]
                                                     const Tensor& upstream,  // [N]
                                                     const Tensor& grad,      // [N, *D]
                                                     const Tensor& norm,      // [N]
                                                     double p) {
  check_norm(grad, p);
  check_like("v", v, grad, "grad");
  NormHessArgs args{};
  args.rows = grad.size(0), args.elements = elements_of(grad);
  args.g = strided_view("grad", grad, grad.sizes());
  args.v = strided_view("v", v, grad.sizes());
  args.p = p;
  args.grad = per_row("upstream", upstream, grad, "grad");
  args.norm = per_row("norm", norm, grad, "grad");
  Tensor dot = torch::stable::new_zeros(grad, {grad.size(0)}, arithmetic_type("grad", grad));
  Tensor curvature = torch::stable::new_empty(grad, grad.sizes());
  args.dot = dot.mutable_data_ptr();
  args.curvature = curvature.mutable_data_ptr();
  args.dtype = args.g.dtype;
  RC_LAUNCH_ON(grad, norm_hess, args);
  return {dot, curvature};
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
  m.def("grad_norm(Tensor grad, float p) -> Tensor");
  m.def("grad_norm_backward(Tensor upstream, Tensor grad, Tensor norm, float p) -> Tensor");
  m.def(
      "grad_norm_double_backward(Tensor v, Tensor upstream, Tensor grad, Tensor norm, float p) -> "
      "(Tensor, Tensor)");
}

template <class Library>
void implement(Library& m) {
  m.impl("logsumexp", TORCH_BOX(&logsumexp));
  m.impl("logsumexp_backward", TORCH_BOX(&logsumexp_backward));
  m.impl("logsumexp_double_backward", TORCH_BOX(&logsumexp_double_backward));
  m.impl("logsumexp_chunk_", TORCH_BOX(&logsumexp_chunk_));
  m.impl("logsumexp_chunk_weights_", TORCH_BOX(&logsumexp_chunk_weights_));
  m.impl("logsumexp_chunk_dot_", TORCH_BOX(&logsumexp_chunk_dot_));
  m.impl("logsumexp_chunk_curvature_", TORCH_BOX(&logsumexp_chunk_curvature_));
  m.impl("grad_norm", TORCH_BOX(&grad_norm));
  m.impl("grad_norm_backward", TORCH_BOX(&grad_norm_backward));
  m.impl("grad_norm_double_backward", TORCH_BOX(&grad_norm_double_backward));
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  implement(m);
}
STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  implement(m);
}

}  // namespace robustcore::density
