// Schemas and checks of batch normalisation. CPU only: elsewhere robustcore/ops calls torch's own.
#include <vector>

#include "common/tensor.h"
#include "density/launch.h"

namespace robustcore::density {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;

std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
  return sizes;
}

// Strides without gaps in the order of dimensions, or with the channels (1) last.
std::vector<int64_t> dense_strides(const Tensor& t, bool channels_last) {
  std::vector<int64_t> strides(t.dim());
  int64_t stride = channels_last ? t.size(1) : 1;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    if (channels_last && d == 1) {
      strides[d] = 1;
      continue;
    }
    strides[d] = stride;
    stride *= t.size(d);
  }
  return strides;
}

bool lies(const Tensor& t, const std::vector<int64_t>& strides) {
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) != strides[d]) return false;
  }
  return true;
}

// One call: x, how all tensors have to lie, and the arguments that follow from it.
class Call {
 public:
  explicit Call(const Tensor& x, BatchNormPass pass) : x_(x) {
    check(x.dim() >= 2, "x: got shape ", shape_of(x), ", want [N, C, *D]");
    check(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double, "x: got ",
          name_of(x.scalar_type()), ", want float32 or float64");
    check(x.numel() > 0, "x: got shape ", shape_of(x), ", want at least one value a channel");
    args.pass = pass;
    args.dtype = floating_dtype("x", x.scalar_type());
    args.channels = x.size(1);
    strides_ = dense_strides(x, false);
    const std::vector<int64_t> last = dense_strides(x, true);
    // A matrix has its channels last.
    args.channels_last = x.dim() == 2 || (!lies(x, strides_) && lies(x, last));
    if (args.channels_last) strides_ = last;
    const int64_t plane = x.numel() / x.size(0) / args.channels;
    args.images = args.channels_last ? x.size(0) * plane : x.size(0);
    args.plane = args.channels_last ? 1 : plane;
    args.x = in("x", x);
  }

  // A tensor like x, copied if it lies otherwise.
  const void* in(const char* name, const Tensor& t) {
    bool same = t.dim() == x_.dim() && t.scalar_type() == x_.scalar_type();
    for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == x_.size(d);
    check(same, name, ": got ", name_of(t.scalar_type()), " of shape ", shape_of(t), ", want ",
          name_of(x_.scalar_type()), " of shape ", shape_of(x_));
    check_same_device(name, t, x_, "x");
    kept_.push_back(t);
    if (!lies(t, strides_)) {
      kept_.back() = out();
      torch::stable::copy_(kept_.back(), t);
    }
    return kept_.back().const_data_ptr();
  }

  // A value a channel.
  const void* vector(const char* name, const OptionalTensor& t) {
    if (!t) return nullptr;
    check(t->dim() == 1 && t->size(0) == args.channels && t->scalar_type() == x_.scalar_type(),
          name, ": got ", name_of(t->scalar_type()), " of shape ", shape_of(*t), ", want ",
          name_of(x_.scalar_type()), " of shape [", args.channels, "]");
    check_same_device(name, *t, x_, "x");
    kept_.push_back(*t);
    if (t->stride(0) != 1) {
      kept_.back() = out_vector();
      torch::stable::copy_(kept_.back(), *t);
    }
    return kept_.back().const_data_ptr();
  }
  void* running(const char* name, const OptionalTensor& t) {
    if (!t) return nullptr;
    vector(name, t);
    check(t->stride(0) == 1, name, ": has to be contiguous");
    return kept_.back().mutable_data_ptr();
  }

  Tensor out() const {
    return empty_on(x_, sizes_of(x_), strides_, x_.scalar_type());
  }
  Tensor out_vector(int64_t rows = 1) const {
    return empty_on(x_, {rows * args.channels}, {1}, x_.scalar_type());
  }

  void run() {
    Tensor factors = out_vector(BatchNormArgs::kFactors);
    args.factors = factors.mutable_data_ptr();
    std::vector<double> sums(args.units() * BatchNormArgs::kSums *
                             (args.channels_last ? args.channels : 1));
    args.sums = sums.data();
    batch_norm_cpu(args);
  }

  BatchNormArgs args{};

 private:
  const Tensor& x_;
  std::vector<int64_t> strides_;
  std::vector<Tensor> kept_;  // until run()
};

Three batch_norm(const Tensor& x,                     // [N, C, *D]
                 const OptionalTensor& weight,        // [C]
                 const OptionalTensor& bias,          // [C]
                 const OptionalTensor& running_mean,  // [C]
                 const OptionalTensor& running_var,   // [C]
                 double momentum, double eps) {
  Call call(x, BatchNormPass::kNormalize);
  BatchNormArgs& args = call.args;
  args.weight = call.vector("weight", weight);
  args.bias = call.vector("bias", bias);
  args.running_mean = call.running("running_mean", running_mean);
  args.running_var = call.running("running_var", running_var);
  args.momentum = momentum, args.eps = eps;
  Tensor y = call.out(), mean = call.out_vector(), inverse = call.out_vector();
  args.out = y.mutable_data_ptr();
  args.mean = mean.mutable_data_ptr();
  args.inverse = inverse.mutable_data_ptr();
  call.run();
  return {y, mean, inverse};
}

void statistics(Call& call, const OptionalTensor& weight, const Tensor& mean,
                const Tensor& inverse) {
  call.args.weight = call.vector("weight", weight);
  call.args.mean = const_cast<void*>(call.vector("mean", mean));  // only read
  call.args.inverse = const_cast<void*>(call.vector("inverse", inverse));
}

Three batch_norm_backward(const Tensor& grad,            // [N, C, *D]
                          const Tensor& x,               // [N, C, *D]
                          const OptionalTensor& weight,  // [C]
                          const Tensor& mean,            // [C]
                          const Tensor& inverse,         // [C]
                          const OptionalTensor& more) {  // [N, C, *D]
  Call call(x, BatchNormPass::kBackward);
  BatchNormArgs& args = call.args;
  args.grad = call.in("grad", grad);
  if (more) args.more = call.in("more", *more);
  statistics(call, weight, mean, inverse);
  Tensor d_x = call.out(), d_weight = call.out_vector(), d_bias = call.out_vector();
  args.out = d_x.mutable_data_ptr();
  args.d_weight = d_weight.mutable_data_ptr();
  args.d_bias = d_bias.mutable_data_ptr();
  call.run();
  return {d_x, d_weight, d_bias};
}

Three batch_norm_double_backward(const Tensor& v,               // [N, C, *D]
                                 const Tensor& grad,            // [N, C, *D]
                                 const Tensor& x,               // [N, C, *D]
                                 const OptionalTensor& weight,  // [C]
                                 const Tensor& mean,            // [C]
                                 const Tensor& inverse,         // [C]
                                 const Tensor& d_weight,        // [C]
                                 const Tensor& d_bias) {        // [C]
  Call call(x, BatchNormPass::kDoubleBackward);
  BatchNormArgs& args = call.args;
  args.v = call.in("v", v);
  args.grad = call.in("grad", grad);
  statistics(call, weight, mean, inverse);
  args.d_weight = const_cast<void*>(call.vector("d_weight", d_weight));  // only read
  args.d_bias = const_cast<void*>(call.vector("d_bias", d_bias));
  Tensor d_grad = call.out(), d_x = call.out(), second = call.out_vector();
  args.out = d_grad.mutable_data_ptr();
  args.curvature = d_x.mutable_data_ptr();
  args.second_d_weight = second.mutable_data_ptr();
  call.run();
  return {d_grad, d_x, second};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_backward(Tensor grad, Tensor x, Tensor? weight, Tensor mean, Tensor inverse, "
      "Tensor? more) -> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm_double_backward(Tensor v, Tensor grad, Tensor x, Tensor? weight, Tensor mean, "
      "Tensor inverse, Tensor d_weight, Tensor d_bias) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
  m.impl("batch_norm_double_backward", TORCH_BOX(&batch_norm_double_backward));
}

}  // namespace robustcore::density
