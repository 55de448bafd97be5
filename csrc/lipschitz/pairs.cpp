// Memory comes dense, contiguous or channels last: the Python side brings it there, because
// convolutions hand it over like that anyway.
#include "lipschitz/pairs.h"

#include "common/cpu.h"
#include "common/device.h"

namespace robustcore::lipschitz {
namespace {

template <class Args>
void run_pairs(void (*kernel)(const Args&, int64_t, int64_t), const Args& args) {
  const PairShape& shape = args.shape;
  run_units(kernel, args, PairTiling(shape).units(shape), 2 * shape.rows * shape.run());
}

void maxmin_cpu(const MaxMinArgs& args) {
  run_pairs(RC_PICK(maxmin), args);
}

void swap_cpu(const SwapArgs& args) {
  run_pairs(RC_PICK(swap), args);
}

void pair_map_cpu(const MapArgs& args) {
  run_pairs(RC_PICK(pair_map), args);
}

void pair_map_backward_cpu(const MapBackwardArgs& args) {
  run_pairs(RC_PICK(pair_map_backward), args);
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
  return empty_on(t, sizes, strides, t.scalar_type());
}

std::tuple<Tensor, Tensor> maxmin(const Tensor& x,  // [N, 2 C, *D]
                                  bool channels_last) {
  MaxMinArgs args{};
  args.shape = pair_shape("x", x, channels_last, 2);
  Tensor out = with_channels(x, x.size(1), channels_last);
  Tensor bits =
      torch::stable::new_empty(x, {args.shape.rows, args.shape.bytes()}, ScalarType::Byte);
  args.x = x.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.bits = bits.mutable_data_ptr<uint8_t>();
  if (x.numel() > 0) run(x, args, maxmin_cpu, RC_CUDA(maxmin_cuda));
  return {out, bits};
}

Tensor maxmin_swap(const Tensor& x,     // [N, 2 C, *D]
                   const Tensor& bits,  // [rows, bytes of a row]
                   bool channels_last) {
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
  if (x.numel() > 0) run(x, args, swap_cpu, RC_CUDA(swap_cuda));
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
        "] of ", name_of(dtype));
  return table.const_data_ptr();
}

Tensor pair_map(const Tensor& x,      // [N, 2 C, *D]
                const Tensor& table,  // [entries, C]
                int64_t map_index, bool channels_last) {
  const Map map = checked_map(map_index);
  const MapSizes sizes = sizes_of(map);
  MapArgs args{};
  args.map = map;
  args.shape = pair_shape("x", x, channels_last, 2);
  args.table = table_data(table, x, sizes.entries, args.shape.channels);
  Tensor out = with_channels(x, sizes.outputs * args.shape.channels, channels_last);
  args.x = x.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (x.numel() > 0) run(x, args, pair_map_cpu, RC_CUDA(pair_map_cuda));
  return out;
}

std::tuple<Tensor, Tensor> pair_map_backward(const Tensor& grad,   // as pair_map's result
                                             const Tensor& x,      // [N, 2 C, *D]
                                             const Tensor& table,  // [entries, C]
                                             int64_t map_index, bool channels_last) {
  const Map map = checked_map(map_index);
  const MapSizes sizes = sizes_of(map);
  MapBackwardArgs args{};
  args.map = map;
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
  if (x.numel() > 0) run(x, args, pair_map_backward_cpu, RC_CUDA(pair_map_backward_cuda));
  return {grad_x, grad_angle};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def("maxmin(Tensor x, bool channels_last) -> (Tensor, Tensor)");
  m.def("maxmin_swap(Tensor x, Tensor bits, bool channels_last) -> Tensor");
  m.def("pair_map(Tensor x, Tensor table, int map, bool channels_last) -> Tensor");
  m.def(
      "pair_map_backward(Tensor grad, Tensor x, Tensor table, int map, bool channels_last) -> "
      "(Tensor, Tensor)");
}

RC_LIBRARY_IMPL(m) {
  m.impl("maxmin", TORCH_BOX(&maxmin));
  m.impl("maxmin_swap", TORCH_BOX(&maxmin_swap));
  m.impl("pair_map", TORCH_BOX(&pair_map));
  m.impl("pair_map_backward", TORCH_BOX(&pair_map_backward));
}

}  // namespace robustcore::lipschitz
