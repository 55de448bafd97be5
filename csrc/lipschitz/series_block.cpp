// Schema and checks of a whole series on a GPU.
#include "lipschitz/series_block.h"

#include <algorithm>

#include "common/device.h"
#include "common/tensor.h"

namespace robustcore::lipschitz {
namespace {

int32_t narrow(const char* name, int64_t size) {
  check(size < int64_t{1} << 31, name, ": got a side of ", size, ", want less than 2^31");
  return static_cast<int32_t>(size);
}

// Memory that 16 bytes at a time are read from or written to.
const void* aligned_data(const char* name, const Tensor& t, const Tensor& x) {
  check_same_device(name, t, x, "x");
  check(t.scalar_type() == x.scalar_type(), name, ": got ", name_of(t.scalar_type()), ", want x's ",
        name_of(x.scalar_type()));
  check(t.dim() == 4 && is_channels_last(t), name, ": want 4 dimensions, channels_last");
  check(reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0, name,
        ": want memory that is aligned to 16 bytes");
  return t.const_data_ptr();
}

void fill(const char* name, const std::vector<double>& from, size_t size, float* to) {
  check(from.size() == size, name, ": got ", from.size(), " numbers, want ", size);
  std::transform(from.begin(), from.end(), to, [](double v) { return static_cast<float>(v); });
}

// See series_block.h. maps takes out[0] to out[degree - 2], backwards if so.
void conv_exp_block(const Tensor& x,       // [N, C, H, W], all of them channels last
                    const Tensor& filter,  // [C, C, 3, 3]
                    std::vector<double> alpha, std::vector<double> beta, std::vector<double> gamma,
                    std::vector<double> delta,
                    Tensor y,             // like x
                    OptionalTensor maps,  // [(degree - 1) N, C, H, W]
                    bool backwards) {
  check(x.is_cuda(), "x: is on the CPU, want it on a GPU");
  check(x.dim() == 4 &&
            (x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16),
        "x: got ", name_of(x.scalar_type()), " ", shape_of(x),
        ", want float32 or bfloat16 [N, C, H, W]");
  const int64_t c = x.size(1), degree = static_cast<int64_t>(alpha.size());
  BlockSeriesArgs args{};
  args.dtype = floating_dtype("x", x.scalar_type());
  args.images = x.size(0);
  args.shape = {narrow("x", c), narrow("x", x.size(2)), narrow("x", x.size(3)),
                narrow("alpha", degree), static_cast<int32_t>(x.element_size())};
  check(args.shape.supported(), "x: got ", shape_of(x), " and ", degree,
        " steps, want 32, 64 or 128 channels, sides below ", BlockShape::kMaxSide, " and 1 to ",
        BlockShape::kMaxDegree, " steps");
  check(filter.dim() == 4 && filter.size(0) == c && filter.size(1) == c && filter.size(2) == 3 &&
            filter.size(3) == 3,
        "filter: got ", shape_of(filter), ", want [", c, ", ", c, ", 3, 3]");
  fill("alpha", alpha, degree, args.alpha);
  fill("beta", beta, degree, args.beta);
  fill("gamma", gamma, degree, args.gamma);
  args.summed = !delta.empty();
  if (args.summed) fill("delta", delta, degree + 1, args.delta);
  args.x = aligned_data("x", x, x);
  args.filter = aligned_data("filter", filter, x);
  check(y.numel() == x.numel(), "y: got ", shape_of(y), ", want x's ", shape_of(x));
  args.y = const_cast<void*>(aligned_data("y", y, x));
  if (maps && degree > 1) {
    check(maps->numel() == (degree - 1) * x.numel(), "maps: got ", shape_of(*maps), ", want ",
          degree - 1, " times x's ", shape_of(x));
    auto* first = static_cast<char*>(const_cast<void*>(aligned_data("maps", *maps, x)));
    args.map_step = backwards ? -x.numel() : x.numel();
    args.maps = first + (backwards ? (degree - 2) * x.numel() * x.element_size() : 0);
  }
  if (x.numel() > 0) run(x, args, nullptr, RC_CUDA(series_block_cuda));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(robustcore, m) {
  m.def(
      "conv_exp_block(Tensor x, Tensor filter, float[] alpha, float[] beta, float[] gamma, "
      "float[] delta, Tensor(a!) y, Tensor(b!)? maps, bool backwards) -> ()");
}

RC_LIBRARY_IMPL(m) {
  m.impl("conv_exp_block", TORCH_BOX(&conv_exp_block));
}

}  // namespace robustcore::lipschitz
