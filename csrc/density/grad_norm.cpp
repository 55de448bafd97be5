// Nothing is allocated or written before every check has passed.
#include "density/grad_norm.h"

#include "common/cpu.h"
#include "common/device.h"
#include "common/row_checks.h"

namespace robustcore::density {
namespace {

void grad_norm_cpu(const GradNormArgs& args) {
  run_units(RC_PICK(grad_norm), args, args.rows, args.rows * args.elements);
}

void grad_norm_backward_cpu(const GradNormBackwardArgs& args) {
  run_units(RC_PICK(grad_norm_backward), args, args.rows, args.rows * args.elements);
}

void grad_norm_double_backward_cpu(const GradNormDoubleBackwardArgs& args) {
  run_units(RC_PICK(grad_norm_double_backward), args, args.rows, args.rows * args.elements);
}

// What all three have.
template <class Args>
Args norm_args(const Tensor& grad,  // [N, *D]
               double p) {
  check(grad.dim() >= 1, "grad: got a 0-d tensor, want [N, *D]");
  check(p >= 1, "p: got ", p, ", want at least 1 (infinity included)");
  Args args{};
  args.rows = grad.size(0), args.elements = elements_of(grad, 1);
  args.grad = strided_view("grad", grad, grad.sizes());
  args.p = p;
  return args;
}

Tensor grad_norm(const Tensor& grad,  // [N, *D]
                 double p) {
  auto args = norm_args<GradNormArgs>(grad, p);
  Tensor norm = torch::stable::new_empty(grad, {grad.size(0)}, arithmetic_type("grad", grad));
  args.norm = norm.mutable_data_ptr();
  const OptionalTensor parts = row_parts(grad, args.rows, args.elements);
  args.plan.parts = data_or_null(parts);
  run(grad, args, grad_norm_cpu, RC_CUDA(grad_norm_cuda));
  return norm;
}

Tensor grad_norm_backward(const Tensor& upstream,  // [N]
                          const Tensor& grad,      // [N, *D]
                          const Tensor& norm,      // [N]
                          double p) {
  auto args = norm_args<GradNormBackwardArgs>(grad, p);
  args.upstream = per_row("upstream", upstream, grad, "grad");
  args.norm = per_row("norm", norm, grad, "grad");
  Tensor dual = torch::stable::new_empty(grad, grad.sizes());
  args.dual = dual.mutable_data_ptr();
  const OptionalTensor parts = row_parts(grad, args.rows, args.elements);
  args.plan.parts = data_or_null(parts);
  run(grad, args, grad_norm_backward_cpu, RC_CUDA(grad_norm_backward_cuda));
  return dual;
}

std::tuple<Tensor, Tensor> grad_norm_double_backward(const Tensor& v,         // [N, *D]
                                                     const Tensor& upstream,  // [N]
                                                     const Tensor& grad,      // [N, *D]
                                                     const Tensor& norm,      // [N]
                                                     double p) {
  auto args = norm_args<GradNormDoubleBackwardArgs>(grad, p);
  check_like("v", v, grad, "grad");
  args.v = strided_view("v", v, grad.sizes());
  args.upstream = per_row("upstream", upstream, grad, "grad");
  args.norm = per_row("norm", norm, grad, "grad");
  Tensor dot = torch::stable::new_empty(grad, {grad.size(0)}, arithmetic_type("grad", grad));
  Tensor curvature = torch::stable::new_empty(grad, grad.sizes());
  args.dot = dot.mutable_data_ptr();
  args.curvature = curvature.mutable_data_ptr();
  const OptionalTensor parts = row_parts(grad, args.rows, args.elements);
  args.plan.parts = data_or_null(parts);
  run(grad, args, grad_norm_double_backward_cpu, RC_CUDA(grad_norm_double_backward_cuda));
  return {dot, curvature};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("grad_norm(Tensor grad, float p) -> Tensor");
  m.def("grad_norm_backward(Tensor upstream, Tensor grad, Tensor norm, float p) -> Tensor");
  m.def(
      "grad_norm_double_backward(Tensor v, Tensor upstream, Tensor grad, Tensor norm, float p) -> "
      "(Tensor, Tensor)");
}

RC_LIBRARY_IMPL(m) {
  m.impl("grad_norm", TORCH_BOX(&grad_norm));
  m.impl("grad_norm_backward", TORCH_BOX(&grad_norm_backward));
  m.impl("grad_norm_double_backward", TORCH_BOX(&grad_norm_double_backward));
}

}  // namespace robustcore::density
