// Schemas and checks of the lipschitz ops. Nothing is allocated or written before every check has
// passed. Memory comes dense, contiguous or channels last: the Python side brings it there, because
// convolutions hand it over like that anyway.
#include <cmath>

#include "common/cuda_stream.h"
#include "common/tensor.h"
#include "lipschitz/launch.h"

namespace robustcore::lipschitz {
namespace {

// Calls kCuda(args..., stream) or kCpu(args...) for tensors where `on` is. Launchers are template
// arguments, so that a build without CUDA refers to none of its own.
template <auto kCpu, auto kCuda, class... Args>
void run(const Tensor& on, const Args&... args) {
  if (on.is_cuda()) {
    on_cuda(on, [&](void* stream) { kCuda(args..., stream); });
  } else {
    kCpu(args...);
  }
}

bool same_layout(const Tensor& t, const Tensor& z) {
  if (t.dim() != z.dim() || t.scalar_type() != z.scalar_type()) return false;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) != z.size(d) || (t.size(d) != 1 && t.stride(d) != z.stride(d))) return false;
  }
  return true;
}

// Every element once, without holes, in whatever order of dimensions.
bool is_dense(const Tensor& t) {
  int64_t reach = 1;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.stride(d) == 0 && t.size(d) > 1) return false;
    reach += (t.size(d) - 1) * t.stride(d);
  }
  return t.numel() == 0 || reach == t.numel();
}

void conv_exp_update(const Tensor& z, const OptionalTensor& a, const OptionalTensor& b,
                     const OptionalTensor& total,  // all [N, C, H, W], laid out alike
                     double alpha, double beta, double gamma, double total_scale, double delta,
                     Tensor out, OptionalTensor total_out) {
  check(is_dense(z), "z: has holes or repeats, shape ", shape_of(z), "; want dense memory");
  check(!total == !total_out, "total_out: want it exactly where total is given");
  const auto data = [&](const char* name, const OptionalTensor& t) -> void* {
    if (!t) return nullptr;
    check_same_device(name, *t, z, "z");
    check(same_layout(*t, z), name, ": got ", torch::headeronly::toString(t->scalar_type()), " ",
          shape_of(*t), ", want the dtype, shape and strides of z ", shape_of(z));
    return const_cast<void*>(t->const_data_ptr());
  };
  UpdateArgs args{};
  args.count = z.numel();
  args.dtype = floating_dtype("z", z.scalar_type());
  args.z = z.const_data_ptr();
  args.a = data("a", a);
  args.b = data("b", b);
  args.total = data("total", total);
  args.out = data("out", out);
  args.total_out = data("total_out", total_out);
  args.alpha = alpha, args.beta = beta, args.gamma = gamma;
  args.total_scale = total_scale, args.delta = delta;
  if (args.count > 0) run<update_cpu, update_cuda>(z, args);
}

Tensor skew(const Tensor& weight) {  // [C, C, kh, kw], contiguous
  check(weight.dim() == 4 && weight.size(0) == weight.size(1) && weight.size(2) % 2 == 1 &&
            weight.size(3) % 2 == 1,
        "weight: got shape ", shape_of(weight), ", want [C, C, kh, kw] with odd kh, kw");
  check(weight.is_contiguous(), "weight: want it contiguous");
  SkewArgs args{};
  args.channels = weight.size(0);
  args.taps = weight.size(2) * weight.size(3);
  args.dtype = floating_dtype("weight", weight.scalar_type());
  Tensor out = torch::stable::empty_like(weight);
  args.weight = weight.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (weight.numel() > 0) run<skew_cpu, skew_cuda>(weight, args);
  return out;
}

// [N, C, *D] as rows of pairs. `halves` is 2 where C counts both members, else 1.
PairShape pair_shape(const char* name, const Tensor& t, bool channels_last, int64_t halves) {
  check(t.dim() >= 2, name, ": got shape ", shape_of(t), ", want [N, C, *D]");
  check(t.size(1) % halves == 0, name, ": got ", t.size(1),
        " channels, want an even number: they pair up");
  PairShape shape{t.size(0), t.size(1) / halves, 1, floating_dtype(name, t.scalar_type())};
  for (int64_t d = 2; d < t.dim(); ++d) shape.pixels *= t.size(d);
  int64_t expected = 1;
  const auto lies = [&](int64_t d) {
    const bool ok = t.size(d) == 1 || t.stride(d) == expected;
    expected *= t.size(d);
    return ok;
  };
  bool ok = true;
  if (channels_last) ok = lies(1);
  for (int64_t d = t.dim() - 1; d >= 2; --d) ok = lies(d) && ok;
  if (!channels_last) ok = lies(1) && ok;
  ok = lies(0) && ok;
  check(ok || t.numel() == 0, name, ": want ", channels_last ? "channels_last" : "contiguous",
        " memory");
  if (channels_last) shape.rows *= shape.pixels, shape.pixels = 1;
  return shape;
}

// Like t, with another number of channels.
Tensor with_channels(const Tensor& t, int64_t channels, bool channels_last) {
  std::vector<int64_t> sizes, strides(t.dim(), 1);
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(d == 1 ? channels : t.size(d));
  int64_t stride = 1;
  const auto lay = [&](int64_t d) {
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  };
  if (channels_last) lay(1);
  for (int64_t d = t.dim() - 1; d >= 2; --d) lay(d);
  if (!channels_last) lay(1);
  lay(0);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(t.scalar_type())),
      t.is_cuda() ? aoti_torch_device_type_cuda() : aoti_torch_device_type_cpu(),
      t.is_cuda() ? t.get_device_index() : 0, &handle));
  return Tensor(handle);
}

void check_tile(int64_t tile) {
  check(tile == 2 || tile == 4, "tile: got ", tile, ", want 2 or 4");
}

// What the two ops of a series share, checked.
SeriesArgs series_args(const Tensor& x, const std::vector<double>& coefficients, double first,
                       double step, double carry, int64_t tile) {
  check(x.dim() == 4 && x.scalar_type() == ScalarType::Float && !x.is_cuda() &&
            pair_shape("x", x, true, 1).rows >= 0,
        "x: got ", name_of(x.scalar_type()), " ", shape_of(x),
        ", want float32 [N, C, H, W] on the CPU");
  check_tile(tile);
  const auto degree = static_cast<int64_t>(coefficients.size()) - 1;
  check(degree >= 1 && degree <= SeriesArgs::kMaxDegree, "coefficients: got ", degree + 1,
        ", want 2 to ", SeriesArgs::kMaxDegree + 1);
  SeriesArgs args{};
  args.images = x.size(0), args.channels = x.size(1);
  args.height = x.size(2), args.width = x.size(3);
  args.degree = degree, args.tile = tile;
  args.x = x.const_data_ptr<float>();
  for (int64_t k = 0; k <= degree; ++k) args.coefficients[k] = static_cast<float>(coefficients[k]);
  args.first = static_cast<float>(first), args.step = static_cast<float>(step);
  args.carry = static_cast<float>(carry);
  return args;
}

SeriesSizes checked_sizes(const SeriesArgs& args) {
  const auto sizes = series_sizes(args);
  check(sizes.has_value(), "conv_exp_series: this processor has no kernel for it");
  return *sizes;
}

// The kernel's transform, in the order that the active instruction set reads it.
Tensor conv_exp_pack(const Tensor& kernel, int64_t tile) {  // [C, C, 3, 3]
  check(kernel.dim() == 4 && kernel.scalar_type() == ScalarType::Float && !kernel.is_cuda() &&
            kernel.is_contiguous() && kernel.size(0) == kernel.size(1) && kernel.size(2) == 3 &&
            kernel.size(3) == 3,
        "kernel: got ", name_of(kernel.scalar_type()), " ", shape_of(kernel),
        ", want contiguous float32 [C, C, 3, 3] on the CPU");
  check_tile(tile);
  SeriesArgs shape{};
  shape.channels = kernel.size(0), shape.tile = tile;
  shape.images = shape.height = shape.width = shape.degree = 1;  // of any images
  Tensor packed = empty_on(kernel, {checked_sizes(shape).kernel}, {1}, ScalarType::Float);
  SeriesKernelArgs args{};
  args.channels = shape.channels, args.tile = tile;
  args.kernel = kernel.const_data_ptr<float>();
  args.out = packed.mutable_data_ptr<float>();
  series_kernel_cpu(args);
  return packed;
}

const float* packed_data(const Tensor& packed, const SeriesArgs& args) {
  const int64_t want = checked_sizes(args).kernel;
  check(packed.dim() == 1 && packed.scalar_type() == ScalarType::Float && !packed.is_cuda() &&
            packed.is_contiguous() && packed.size(0) == want,
        "packed: got ", shape_of(packed), ", want [", want,
        "], what conv_exp_pack returns for x's channels, this tile and this instruction set");
  return packed.const_data_ptr<float>();
}

std::tuple<Tensor, Tensor> conv_exp_series(const Tensor& x, const Tensor& packed,
                                           std::vector<double> coefficients, double first,
                                           double step, double carry, int64_t tile, bool keep) {
  SeriesArgs args = series_args(x, coefficients, first, step, carry, tile);
  args.kernel = packed_data(packed, args);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  Tensor y = with_channels(x, c, true);
  Tensor kept = empty_on(x, {keep ? (args.degree - 1) * n : 0, c, h, w}, {c * h * w, 1, c * w, c},
                         ScalarType::Float);
  args.y = y.mutable_data_ptr<float>();
  args.kept = kept.numel() > 0 ? kept.mutable_data_ptr<float>() : nullptr;
  if (x.numel() > 0) series_cpu(args);
  return {y, kept};
}

// u[1], u[2], ... of x, or nullptr to compute them again.
float* kept_data(const OptionalTensor& kept, const Tensor& x, int64_t degree) {
  if (!kept) return nullptr;
  check(!kept->is_cuda() && kept->scalar_type() == ScalarType::Float &&
            kept->numel() == (degree - 1) * x.numel(),
        "kept: got ", shape_of(*kept), ", want what conv_exp_series returned for x ", shape_of(x));
  return const_cast<float*>(kept->const_data_ptr<float>());
}

// The gradient of x, and what the kernel's is made of by conv_exp_series_gradient: apart, because
// a wide kernel is large, packed and as a gradient, and need not be there in both forms.
std::tuple<Tensor, Tensor> conv_exp_series_backward(const Tensor& grad, const Tensor& x,
                                                    const Tensor& packed,
                                                    const OptionalTensor& kept,
                                                    std::vector<double> coefficients, double first,
                                                    double step, double carry, int64_t tile) {
  SeriesBackwardArgs args{};
  args.series = series_args(x, coefficients, first, step, carry, tile);
  args.series.kernel = packed_data(packed, args.series);
  args.series.kept = kept_data(kept, x, args.series.degree);
  check(!grad.is_cuda() && same_layout(grad, x), "grad: got ", name_of(grad.scalar_type()), " ",
        shape_of(grad), ", want the dtype, shape and strides of x ", shape_of(x));
  Tensor grad_x = with_channels(x, x.size(1), true);
  Tensor work = empty_on(x, {checked_sizes(args.series).work}, {1}, ScalarType::Float);
  args.grad = grad.const_data_ptr<float>();
  args.grad_x = grad_x.mutable_data_ptr<float>();
  args.work = work.mutable_data_ptr<float>();
  if (x.numel() > 0) series_backward_cpu(args);
  return {grad_x, work};
}

// Its arguments are those that gave `work`; the values of x do not matter.
Tensor conv_exp_series_gradient(const Tensor& work, const Tensor& x, int64_t degree, int64_t tile,
                                bool kept) {
  check(degree >= 1 && degree <= SeriesArgs::kMaxDegree, "degree: got ", degree, ", want 1 to ",
        SeriesArgs::kMaxDegree);
  SeriesBackwardArgs args{};
  args.series = series_args(x, std::vector<double>(degree + 1), 0, 0, 0, tile);
  // Whether it is there decides how the work is laid out; nothing is read from it.
  float present = 0;
  args.series.kept = kept ? &present : nullptr;
  const int64_t want = checked_sizes(args.series).work, c = x.size(1);
  check(!work.is_cuda() && work.scalar_type() == ScalarType::Float && work.dim() == 1 &&
            work.is_contiguous() && work.size(0) == want,
        "work: got ", shape_of(work), ", want [", want,
        "], what conv_exp_series_backward returns for x ", shape_of(x));
  Tensor grad_kernel = empty_on(x, {c, c, 3, 3}, {9 * c, 9, 3, 1}, ScalarType::Float);
  args.work = const_cast<float*>(work.const_data_ptr<float>());
  args.grad_kernel = grad_kernel.mutable_data_ptr<float>();
  if (c > 0) series_gradient_cpu(args);  // of no image: a sum of nothing
  return grad_kernel;
}

std::tuple<Tensor, Tensor> maxmin(const Tensor& x, bool channels_last) {
  MaxMinArgs args{};
  args.shape = pair_shape("x", x, channels_last, 2);
  Tensor out = with_channels(x, x.size(1), channels_last);
  Tensor bits =
      torch::stable::new_empty(x, {args.shape.rows, args.shape.bytes()}, ScalarType::Byte);
  args.x = x.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.bits = bits.mutable_data_ptr<uint8_t>();
  if (x.numel() > 0) run<maxmin_cpu, maxmin_cuda>(x, args);
  return {out, bits};
}

Tensor maxmin_swap(const Tensor& x, const Tensor& bits, bool channels_last) {
  SwapArgs args{};
  args.shape = pair_shape("x", x, channels_last, 2);
  check_same_device("bits", bits, x, "x");
  check(bits.scalar_type() == ScalarType::Byte && bits.dim() == 2 && bits.is_contiguous() &&
            bits.size(0) == args.shape.rows && bits.size(1) == args.shape.bytes(),
        "bits: got ", shape_of(bits), ", want uint8 [", args.shape.rows, ", ", args.shape.bytes(),
        "]");
  Tensor out = with_channels(x, x.size(1), channels_last);
  args.x = x.const_data_ptr();
  args.bits = bits.const_data_ptr<uint8_t>();
  args.out = out.mutable_data_ptr();
  if (x.numel() > 0) run<swap_cpu, swap_cuda>(x, args);
  return out;
}

Map checked_map(int64_t map) {
  check(map >= 0 && map < 3, "map: got ", map, ", want 0, 1 or 2");
  return static_cast<Map>(map);
}

struct MapSizes {
  int64_t entries, outputs, angles;
};

MapSizes sizes_of(Map map) {
  MapSizes sizes{};
  dispatch_map(map, [&](auto m) { sizes = {m.kEntries, m.kOutputs, m.kAngles}; });
  return sizes;
}

const void* table_data(const Tensor& table, const Tensor& x, int64_t entries, int64_t channels) {
  check_same_device("table", table, x, "x");
  const auto dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(table.dim() == 2 && table.size(0) == entries && table.size(1) == channels &&
            table.is_contiguous() && table.scalar_type() == dtype,
        "table: got ", shape_of(table), ", want a contiguous table [", entries, ", ", channels,
        "] of ", torch::headeronly::toString(dtype));
  return table.const_data_ptr();
}

Tensor pair_map(const Tensor& x,      // [N, 2 C, *D]
                const Tensor& table,  // [entries, C]
                int64_t map_index, bool channels_last) {
  const Map map = checked_map(map_index);
  const MapSizes sizes = sizes_of(map);
  MapArgs args{};
  args.shape = pair_shape("x", x, channels_last, 2);
  args.table = table_data(table, x, sizes.entries, args.shape.channels);
  Tensor out = with_channels(x, sizes.outputs * args.shape.channels, channels_last);
  args.x = x.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (x.numel() > 0) run<map_cpu, map_cuda>(x, map, args);
  return out;
}

std::tuple<Tensor, Tensor> pair_map_backward(const Tensor& grad, const Tensor& x,
                                             const Tensor& table, int64_t map_index,
                                             bool channels_last) {
  const Map map = checked_map(map_index);
  const MapSizes sizes = sizes_of(map);
  MapBackwardArgs args{};
  args.shape = pair_shape("x", x, channels_last, 2);
  args.table = table_data(table, x, sizes.entries, args.shape.channels);
  check_same_device("grad", grad, x, "x");
  const PairShape of_grad = pair_shape("grad", grad, channels_last, sizes.outputs);
  check(of_grad.rows == args.shape.rows && of_grad.run() == args.shape.run() &&
            of_grad.dtype == args.shape.dtype,
        "grad: got ", shape_of(grad), ", which is not of x ", shape_of(x));
  Tensor grad_x = with_channels(x, x.size(1), channels_last);
  Tensor grad_angle = with_channels(x, sizes.angles * args.shape.channels, channels_last);
  args.x = x.const_data_ptr();
  args.grad = grad.const_data_ptr();
  args.grad_x = grad_x.mutable_data_ptr();
  args.grad_angle = grad_angle.mutable_data_ptr();
  if (x.numel() > 0) run<map_backward_cpu, map_backward_cuda>(x, map, args);
  return {grad_x, grad_angle};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "conv_exp_update(Tensor z, Tensor? a, Tensor? b, Tensor? total, float alpha, float beta, "
      "float gamma, float total_scale, float delta, Tensor(a!) out, Tensor(b!)? total_out) -> ()");
  m.def("conv_exp_pack(Tensor kernel, int tile) -> Tensor");
  m.def(
      "conv_exp_series(Tensor x, Tensor packed, float[] coefficients, float first, float step, "
      "float carry, int tile, bool keep) -> (Tensor, Tensor)");
  m.def(
      "conv_exp_series_backward(Tensor grad, Tensor x, Tensor packed, Tensor? kept, "
      "float[] coefficients, float first, float step, float carry, int tile) -> "
      "(Tensor, Tensor)");
  m.def(
      "conv_exp_series_gradient(Tensor work, Tensor x, int degree, int tile, bool kept) -> Tensor");
  m.def("skew(Tensor weight) -> Tensor");
  m.def("maxmin(Tensor x, bool channels_last) -> (Tensor, Tensor)");
  m.def("maxmin_swap(Tensor x, Tensor bits, bool channels_last) -> Tensor");
  m.def("pair_map(Tensor x, Tensor table, int map, bool channels_last) -> Tensor");
  m.def(
      "pair_map_backward(Tensor grad, Tensor x, Tensor table, int map, bool channels_last) -> "
      "(Tensor, Tensor)");
}

template <class Library>
void implement(Library& m) {
  m.impl("conv_exp_update", TORCH_BOX(&conv_exp_update));
  m.impl("skew", TORCH_BOX(&skew));
  m.impl("maxmin", TORCH_BOX(&maxmin));
  m.impl("maxmin_swap", TORCH_BOX(&maxmin_swap));
  m.impl("pair_map", TORCH_BOX(&pair_map));
  m.impl("pair_map_backward", TORCH_BOX(&pair_map_backward));
}

STABLE_TORCH_LIBRARY_IMPL(robustcore, CPU, m) {
  implement(m);
  m.impl("conv_exp_pack", TORCH_BOX(&conv_exp_pack));
  m.impl("conv_exp_series", TORCH_BOX(&conv_exp_series));
  m.impl("conv_exp_series_backward", TORCH_BOX(&conv_exp_series_backward));
  m.impl("conv_exp_series_gradient", TORCH_BOX(&conv_exp_series_gradient));
}
STABLE_TORCH_LIBRARY_IMPL(robustcore, CUDA, m) {
  implement(m);
}

}  // namespace robustcore::lipschitz
