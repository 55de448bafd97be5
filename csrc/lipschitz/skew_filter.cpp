// Schemas and checks of a SOC layer's filter. Every tensor is contiguous but a gradient, which may
// be channels last.
#include "lipschitz/skew_filter.h"

#include <cmath>

#include "common/cpu.h"
#include "common/device.h"
#include "common/tensor.h"

namespace robustcore::lipschitz {
namespace {

FilterShape shape_with(const Tensor& weight) {
  check(weight.dim() == 4 && weight.size(0) == weight.size(1) && weight.size(2) == weight.size(3) &&
            weight.size(2) % 2 == 1 && weight.size(2) <= FilterShape::kMaxSide &&
            weight.numel() > 0 && weight.numel() < int64_t{1} << 31,
        "weight: got shape ", shape_of(weight), ", want [C, C, k, k], k odd and at most ",
        int64_t{FilterShape::kMaxSide}, ", fewer than 2**31 elements");
  return {static_cast<int>(weight.size(0)), static_cast<int>(weight.size(2))};
}

// Contiguous float32 of so many elements, on the weight's device.
float* data_of(const char* name, const Tensor& t, int64_t count, const Tensor& weight) {
  check(t.scalar_type() == ScalarType::Float && t.numel() == count && t.is_contiguous(), name,
        ": got ", name_of(t.scalar_type()), " ", shape_of(t), ", want ", count,
        " contiguous elements of float32");
  check_same_device(name, t, weight, "weight");
  return const_cast<float*>(static_cast<const float*>(t.const_data_ptr()));
}

template <class T = float>
Vectors<T> vectors_of(const Tensor& u1, const Tensor& v1, const Tensor& u3, const Tensor& v3,
                      const FilterShape& shape, const Tensor& weight) {
  const int64_t sides = int64_t{shape.channels} * shape.side;
  return {data_of("u1", u1, sides, weight), data_of("v1", v1, sides, weight),
          data_of("u3", u3, shape.row(), weight), data_of("v3", v3, shape.channels, weight)};
}

DType narrow_dtype(const char* name, ScalarType type) {
  const DType dtype = floating_dtype(name, type);
  check(dtype != DType::kFloat64, name, ": got float64, want float32, float16 or bfloat16");
  return dtype;
}

// ---- A step of power iteration -------------------------------------------------------------------

void power_cpu(const PowerArgs& args) {
  const FilterShape& shape = args.shape;
  PowerArgs half = args;
  for (const bool second : {false, true}) {
    half.second = second;
    run_with_scratch(RC_PICK(power_half), half, filter_units(shape), 3 * shape.row(),
                     kFilterRun * shape.row());
  }
  RC_PICK(power_finish)(args, 0, 1);
}

// The vectors after the step, also left in u1, v1, u3 and v3, and the norms.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> skew_power(const Tensor& weight,  // [C, C, k, k]
                                                              const Tensor& u1,      // [C, k]
                                                              const Tensor& v1,      // [C, k]
                                                              const Tensor& u3,      // [C, k, k]
                                                              const Tensor& v3) {    // [C]
  PowerArgs args{};
  args.shape = shape_with(weight);
  args.weight = data_of("weight", weight, weight.numel(), weight);
  args.kept = vectors_of(u1, v1, u3, v3, args.shape, weight);
  Tensor fresh_u1 = torch::stable::empty_like(u1), fresh_v1 = torch::stable::empty_like(v1);
  Tensor fresh_u3 = torch::stable::empty_like(u3), fresh_v3 = torch::stable::empty_like(v3);
  args.fresh = vectors_of(fresh_u1, fresh_v1, fresh_u3, fresh_v3, args.shape, weight);
  const int64_t n = args.shape.channels;
  args.usual = static_cast<float>(0.1 / std::sqrt(static_cast<double>(n)));
  Tensor squares = empty_on(weight, {4, n}, {n, 1}, ScalarType::Double);
  Tensor largest = empty_on(weight, {n}, {1}, ScalarType::Float);
  Tensor norms = empty_on(weight, {3}, {1}, ScalarType::Float);
  args.squares = static_cast<double*>(squares.mutable_data_ptr());
  args.largest = data_of("largest", largest, n, weight);
  args.norms = data_of("norms", norms, 3, weight);
  run(weight, args, power_cpu, RC_CUDA(power_cuda));
  return {fresh_u1, fresh_v1, fresh_u3, fresh_v3, norms};
}

// ---- The filter ----------------------------------------------------------------------------------

void filter_cpu(const FilterArgs& args) {
  run_units(RC_PICK(filter), args, filter_units(args.shape),
            int64_t{args.shape.channels} * args.shape.row());
}

// scale S / sigma in the dtype of `like`.
Tensor skew_filter(const Tensor& weight, const Tensor& scale, const Tensor& norms,
                   const Tensor& like, bool channels_last) {
  FilterArgs args{};
  args.shape = shape_with(weight);
  args.weight = data_of("weight", weight, weight.numel(), weight);
  args.scale = data_of("scale", scale, 1, weight);
  args.norms = data_of("norms", norms, 3, weight);
  args.dtype = narrow_dtype("like", like.scalar_type());
  args.channels_last = channels_last;
  const int64_t n = args.shape.channels, k = args.shape.side;
  const std::vector<int64_t> sizes{n, n, k, k};
  Tensor out = empty_on(weight, sizes, dense_strides(sizes, channels_last), like.scalar_type());
  args.out = out.mutable_data_ptr();
  run(weight, args, filter_cpu, RC_CUDA(filter_cuda));
  return out;
}

// ---- Its gradient --------------------------------------------------------------------------------

void filter_backward_cpu(const FilterBackwardArgs& args) {
  const int64_t units = filter_units(args.shape), row = args.shape.row();
  run_with_scratch(RC_PICK(filter_inner), args, units, 2 * row, kFilterRun * row);
  run_units(RC_PICK(filter_backward), args, units, args.shape.channels * row);
}

// Of first * grad + second * other, the gradient of skew_filter's result, that of the weight.
Tensor skew_filter_backward(const Tensor& grad, const OptionalTensor& other, double first,
                            double second, const Tensor& weight, const Tensor& scale,
                            const Tensor& norms, const Tensor& u1, const Tensor& v1,
                            const Tensor& u3, const Tensor& v3) {
  FilterBackwardArgs args{};
  args.shape = shape_with(weight);
  args.channels_last = grad.dim() == 4 && channels_last(grad);
  const auto part = [&](const char* name, const Tensor& t) {
    check(t.dim() == 4 && t.numel() == weight.numel() && t.size(0) == weight.size(0) &&
              t.size(1) == weight.size(1) && t.size(2) == weight.size(2) &&
              (args.channels_last ? is_channels_last(t) : t.is_contiguous()) &&
              t.scalar_type() == grad.scalar_type(),
          name, ": got ", name_of(t.scalar_type()), " ", shape_of(t), ", want as weight, ",
          shape_of(weight), ", in the dtype and layout of grad, contiguous or channels last");
    check_same_device(name, t, weight, "weight");
    return t.const_data_ptr();
  };
  args.dtype = narrow_dtype("grad", grad.scalar_type());
  args.grad = part("grad", grad);
  args.other = other ? part("other", *other) : nullptr;
  args.first = static_cast<float>(first), args.second = static_cast<float>(second);
  args.weight = data_of("weight", weight, weight.numel(), weight);
  args.scale = data_of("scale", scale, 1, weight);
  args.norms = data_of("norms", norms, 3, weight);
  const auto vectors = vectors_of(u1, v1, u3, v3, args.shape, weight);
  args.vectors = {vectors.u1, vectors.v1, vectors.u3, vectors.v3};
  Tensor inner = empty_on(weight, {weight.size(0)}, {1}, ScalarType::Float);
  Tensor out = torch::stable::empty_like(weight);
  args.inner = data_of("inner", inner, weight.size(0), weight);
  args.out = data_of("out", out, weight.numel(), weight);
  run(weight, args, filter_backward_cpu, RC_CUDA(filter_backward_cuda));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "skew_power(Tensor weight, Tensor(a!) u1, Tensor(b!) v1, Tensor(c!) u3, Tensor(d!) v3) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "skew_filter(Tensor weight, Tensor scale, Tensor norms, Tensor like, bool channels_last) -> "
      "Tensor");
  m.def(
      "skew_filter_backward(Tensor grad, Tensor? other, float first, float second, Tensor weight, "
      "Tensor scale, Tensor norms, Tensor u1, Tensor v1, Tensor u3, Tensor v3) -> Tensor");
}

RC_LIBRARY_IMPL(m) {
  m.impl("skew_power", TORCH_BOX(&skew_power));
  m.impl("skew_filter", TORCH_BOX(&skew_filter));
  m.impl("skew_filter_backward", TORCH_BOX(&skew_filter_backward));
}

}  // namespace robustcore::lipschitz
