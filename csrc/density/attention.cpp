// Nothing is allocated or written before every check has passed.
#include "density/attention.h"

#include "common/cpu.h"
#include "common/device.h"
#include "common/row_checks.h"

namespace robustcore::density {
namespace {

void attention_cpu(const AttentionArgs& args) {
  const AttentionInputs& in = args.in;
  run_with_scratch(RC_PICK(attention), args, in.batch * in.heads * ceil_div(in.rows, kTile),
                   attention_scratch(in, 1, 1));
}

void attention_backward_cpu(const AttentionBackwardArgs& args) {
  run_with_scratch(RC_PICK(attention_backward), args, args.in.batch * args.in.heads,
                   attention_scratch(args.in, 2, 3));
}

void attention_double_backward_cpu(const AttentionDoubleBackwardArgs& args) {
  run_with_scratch(RC_PICK(attention_double_backward), args, args.in.batch * args.in.heads,
                   attention_scratch(args.in, 4, 5));
}

const void* like_query(const char* name, const Tensor& t, const Tensor& like,
                       const char* like_name) {
  check_like(name, t, like, like_name);
  check(t.is_contiguous(), name, ": has to be contiguous");
  return t.const_data_ptr();
}

// [batch, heads, count, width], contiguous, float32 or float64.
const void* tokens(const char* name, const Tensor& t, const Tensor& q, int64_t count,
                   int64_t width) {
  const bool fits = t.dim() == 4 && t.size(0) == q.size(0) && t.size(1) == q.size(1) &&
                    (count < 0 || t.size(2) == count) && (width < 0 || t.size(3) == width);
  check(fits && t.scalar_type() == q.scalar_type(), name, ": got ", name_of(t.scalar_type()),
        " of shape ", shape_of(t), ", which does not fit q, ", name_of(q.scalar_type()),
        " of shape ", shape_of(q));
  check(t.is_contiguous(), name, ": has to be contiguous");
  check_same_device(name, t, q, "q");
  return t.const_data_ptr();
}

AttentionInputs inputs(const Tensor& q,             // [batch, heads, rows, dim]
                       const Tensor& k,             // [batch, heads, columns, dim]
                       const Tensor& v,             // [batch, heads, columns, value_dim]
                       const OptionalTensor& mask,  // [batch, heads, rows, columns]
                       bool causal, double scale) {
  check(q.dim() == 4, "q: got shape ", shape_of(q), ", want [batch, heads, rows, dim]");
  check(q.scalar_type() == arithmetic_type("q", q), "q: got ", name_of(q.scalar_type()),
        ", want float32 or float64");
  AttentionInputs in{};
  in.batch = q.size(0), in.heads = q.size(1), in.rows = q.size(2), in.dim = q.size(3);
  in.q = tokens("q", q, q, -1, -1);
  in.k = tokens("k", k, q, -1, in.dim);
  in.columns = k.size(2);
  check(in.columns >= 1, "k: got shape ", shape_of(k), ", want at least one column");
  in.v = tokens("v", v, q, in.columns, -1);
  in.value_dim = v.size(3);
  in.causal = causal, in.scale = scale;
  in.float64 = q.scalar_type() == ScalarType::Double;
  if (!mask) return in;
  const bool fits = mask->dim() == 4 && mask->size(0) == in.batch && mask->size(1) == in.heads &&
                    mask->size(2) == in.rows && mask->size(3) == in.columns;
  check(fits && mask->scalar_type() == q.scalar_type(), "mask: got ", name_of(mask->scalar_type()),
        " of shape ", shape_of(*mask), ", want ", name_of(q.scalar_type()), " of shape [", in.batch,
        ", ", in.heads, ", ", in.rows, ", ", in.columns, "]");
  check_same_device("mask", *mask, q, "q");
  in.mask = mask->const_data_ptr();
  for (int d = 0; d < 4; ++d) in.mask_strides[d] = mask->stride(d);
  return in;
}

// What a GPU's kernel of rows leaves to that of columns.
Tensor stats_of(const AttentionInputs& in, const Tensor& q) {
  const int64_t rows = q.is_cuda() ? in.batch * in.heads * in.rows : 0;
  return torch::stable::new_empty(q, {rows, kStats});
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const OptionalTensor& mask, bool causal, double scale) {
  AttentionArgs args{};
  args.in = inputs(q, k, v, mask, causal, scale);
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), v.size(3)});
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  args.out = out.mutable_data_ptr(), args.lse = lse.mutable_data_ptr();
  run(q, args, attention_cpu, RC_CUDA(attention_cuda));
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(
    const Tensor& grad,  // [batch, heads, rows, value_dim]
    const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& out,  // as grad
    const Tensor& lse,  // [batch, heads, rows]
    const OptionalTensor& mask, bool causal, double scale) {
  AttentionBackwardArgs args{};
  args.in = inputs(q, k, v, mask, causal, scale);
  args.grad = tokens("grad", grad, q, args.in.rows, args.in.value_dim);
  args.out = like_query("out", out, grad, "grad");
  args.lse = lse.const_data_ptr();
  Tensor d_q = torch::stable::new_empty(q, q.sizes());
  Tensor d_k = torch::stable::new_zeros(k, k.sizes()), d_v = torch::stable::new_zeros(v, v.sizes());
  Tensor stats = stats_of(args.in, q);
  args.d_q = d_q.mutable_data_ptr(), args.d_k = d_k.mutable_data_ptr();
  args.d_v = d_v.mutable_data_ptr(), args.stats = stats.mutable_data_ptr();
  run(q, args, attention_backward_cpu, RC_CUDA(attention_backward_cuda));
  return {d_q, d_k, d_v};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_double_backward(
    const Tensor& v_q, const Tensor& v_k, const Tensor& v_v,  // as q, k and v
    const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& lse, const OptionalTensor& mask, bool causal, double scale) {
  AttentionDoubleBackwardArgs args{};
  args.in = inputs(q, k, v, mask, causal, scale);
  args.grad = tokens("grad", grad, q, args.in.rows, args.in.value_dim);
  args.out = like_query("out", out, grad, "grad");
  args.lse = lse.const_data_ptr();
  args.v_q = like_query("v_q", v_q, q, "q");
  args.v_k = like_query("v_k", v_k, k, "k");
  args.v_v = like_query("v_v", v_v, v, "v");
  Tensor d_grad = torch::stable::new_empty(grad, grad.sizes());
  Tensor d_q = torch::stable::new_empty(q, q.sizes());
  Tensor d_k = torch::stable::new_zeros(k, k.sizes()), d_v = torch::stable::new_zeros(v, v.sizes());
  Tensor stats = stats_of(args.in, q);
  args.d_grad = d_grad.mutable_data_ptr(), args.d_q = d_q.mutable_data_ptr();
  args.d_k = d_k.mutable_data_ptr(), args.d_v = d_v.mutable_data_ptr();
  args.stats = stats.mutable_data_ptr();
  run(q, args, attention_double_backward_cpu, RC_CUDA(attention_double_backward_cuda));
  return {d_grad, d_q, d_k, d_v};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale) -> (Tensor, "
      "Tensor)");
  m.def(
      "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor? mask, bool causal, float scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "attention_double_backward(Tensor v_q, Tensor v_k, Tensor v_v, Tensor grad, Tensor q, "
      "Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? mask, bool causal, float scale) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

RC_LIBRARY_IMPL(m) {
  m.impl("attention", TORCH_BOX(&attention));
  m.impl("attention_backward", TORCH_BOX(&attention_backward));
  m.impl("attention_double_backward", TORCH_BOX(&attention_double_backward));
}

}  // namespace robustcore::density
