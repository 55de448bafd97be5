// The forward pass is the CPU's only: elsewhere robustcore/ops calls torch's own.
#include "density/batch_norm.h"

#include <vector>

#include "common/cpu.h"
#include "common/device.h"
#include "common/row_checks.h"

namespace robustcore::density {
namespace {

// What a channel's sums come to in the forward pass: its statistics, and factors of the sweep.
template <class T, BatchNormPass kPass>
void finish_forward(const BatchNormArgs& args, int64_t c) {
  const auto at = [c](const void* p, double otherwise) {
    return p ? static_cast<double>(static_cast<const T*>(p)[c]) : otherwise;
  };
  const auto set = [c](void* p, double value) {
    if (p) static_cast<T*>(p)[c] = static_cast<T>(value);
  };
  const double count = static_cast<double>(args.count());
  double m[sums_of(kPass)];  // means of what was summed
  batch_norm_total(args, args.chunks(), c, m);
  for (double& sum : m) sum /= count;
  if constexpr (kPass == BatchNormPass::kMean) {
    set(args.mean, m[0]);
  } else {
    const double mean = at(args.mean, 0) + m[0], var = m[1] - m[0] * m[0];
    const double inverse = 1 / std::sqrt((var > 0 ? var : var < 0 ? 0 : var) + args.eps);
    const double k = at(args.weight, 1) * inverse;
    set(args.mean, mean);
    set(args.inverse, inverse);
    set(args.factors, k);
    set(static_cast<T*>(args.factors) + args.channels,
        at(args.bias, 0) - k * (mean - at(args.mean, 0)));  // of what rounding took from the mean
    const auto run = [&](void* running, double value) {
      set(running, (1 - args.momentum) * at(running, 0) + args.momentum * value);
    };
    run(args.running_mean, mean);
    run(args.running_var, var * count / (count - 1));
  }
}

template <class T, BatchNormPass kPass>
void finish(const BatchNormArgs& args, int64_t c) {
  if constexpr (kPass == BatchNormPass::kMean || kPass == BatchNormPass::kNormalize) {
    finish_forward<T, kPass>(args, c);
  } else {
    batch_norm_finish<T, kPass>(args, args.chunks(), c, true, [&](int i, double factor) {
      static_cast<T*>(args.factors)[i * args.channels + c] = static_cast<T>(factor);
    });
  }
}

// Channels enough for threads to have one each. Sums and sweep then take turns on a few channels,
// which stay in cache from the one to the other.
constexpr int64_t kManyChannels = 16;

void batch_norm_cpu(const BatchNormArgs& args) {
  const auto sums = RC_PICK(batch_norm_sums), write = RC_PICK(batch_norm_write);
  const auto finish_channels = [](const BatchNormArgs& pass, int64_t begin, int64_t end) {
    for_pass(pass, [&](auto kind, auto tag) {
      for (int64_t c = begin; c < end; ++c) finish<decltype(tag), kind()>(pass, c);
    });
  };
  BatchNormArgs mean = args;
  mean.pass = BatchNormPass::kMean;
  const bool needs_mean = args.pass == BatchNormPass::kNormalize;
  if (!args.channels_last && args.channels >= kManyChannels) {
    const int64_t grain = ceil_div(kGrainElements, args.count()), chunks = args.chunks();
    const int64_t together = ceil_div(BatchNormArgs::kUnit, args.count());
    torch::stable::parallel_for(0, args.channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; c += together) {
        const int64_t next = c + together < end ? c + together : end;
        const auto sum = [&](const BatchNormArgs& pass) {
          sums(pass, c * chunks, next * chunks);
          finish_channels(pass, c, next);
        };
        if (needs_mean) sum(mean);
        sum(args);
        write(args, c * chunks, next * chunks);
      }
    });
    return;
  }
  const int64_t elements = args.count() * args.channels;
  const auto sum = [&](const BatchNormArgs& pass) {
    run_units(sums, pass, args.units(), elements);
    finish_channels(pass, 0, args.channels);
  };
  if (needs_mean) sum(mean);
  sum(args);
  run_units(write, args, args.units(), elements);
}

using Three = std::tuple<Tensor, Tensor, Tensor>;

bool lies(const Tensor& t, const std::vector<int64_t>& strides) {
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) != strides[d]) return false;
  }
  return true;
}

// One call: x, how all tensors have to lie, and the arguments that follow from it.
class Call {
 public:
  Call(const Tensor& x, BatchNormPass pass) : x_(x), sizes_(x.sizes().vec()) {
    check(x.dim() >= 2, "x: got shape ", shape_of(x), ", want [N, C, *D]");
    const bool wide = x.scalar_type() == ScalarType::Double && !x.is_cuda();
    check(x.scalar_type() == ScalarType::Float || wide, "x: got ", name_of(x.scalar_type()),
          ", want float32", x.is_cuda() ? " on CUDA" : " or float64");
    check(x.numel() > 0, "x: got shape ", shape_of(x), ", want at least one value a channel");
    args.pass = pass;
    args.dtype = floating_dtype("x", x.scalar_type());
    args.channels = x.size(1);
    strides_ = dense_strides(sizes_, false);
    const std::vector<int64_t> last = dense_strides(sizes_, true);
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
    check_like(name, t, x_, "x");
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
    check_vector(name, *t, args.channels, x_.scalar_type(), x_, "x");
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
    return empty_on(x_, sizes_, strides_, x_.scalar_type());
  }
  Tensor out_vector(int64_t rows = 1) const {
    return empty_on(x_, {rows * args.channels}, {1}, x_.scalar_type());
  }

  void run() {
    Tensor factors = out_vector(BatchNormArgs::kMostFactors);
    args.factors = factors.mutable_data_ptr();
    const int64_t count =
        args.units() * BatchNormArgs::kMostSums * (args.channels_last ? args.channels : 1);
    Tensor sums = empty_on(x_, {count}, {1}, ScalarType::Double);
    args.sums = static_cast<double*>(sums.mutable_data_ptr());
    robustcore::run(x_, args, batch_norm_cpu, RC_CUDA(batch_norm_cuda));
  }

  BatchNormArgs args{};

 private:
  const Tensor& x_;
  const std::vector<int64_t> sizes_;
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
  args.y = y.mutable_data_ptr();
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
  args.d_x = d_x.mutable_data_ptr();
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
  args.d_grad = d_grad.mutable_data_ptr();
  args.d_x = d_x.mutable_data_ptr();
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
}

RC_LIBRARY_IMPL(m) {
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
  m.impl("batch_norm_double_backward", TORCH_BOX(&batch_norm_double_backward));
}

}  // namespace robustcore::density
