#include "common/cuda.h"
#include "masking/epilogue.h"

namespace robustcore::masking {
namespace {

// A thread's elements are kWide channels of a pixel or kWide pixels of a channel.
template <class E, class Index, int kWide>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(const __grid_constant__ EpilogueArgs args) {
  using T = Arithmetic<E>;
  const Index columns = args.columns, pixels = args.rows * columns, channels = args.channels;
  const bool affine = args.scale || args.shift, last = args.channels_last;
  for_image_packs<Index, kWide>(args.images, args.channels * pixels, [&](int64_t image, Index e) {
    const auto x = *reinterpret_cast<const Pack<E, kWide>*>(static_cast<const E*>(args.x.data) +
                                                            image * args.x.strides[0] + e);
    const Index line = e / (last ? channels : pixels), rest = e - line * (last ? channels : pixels);
    const Index channel = last ? rest : line, pixel = last ? line : rest;
    const auto mask_at = [&](Index p) {
      if (!args.mask.data) return T(1);
      return load_as<T>(args.mask.data, args.mask.dtype,
                        offset_of(args.mask.strides, image, 0, p / columns, p % columns));
    };
    T m = mask_at(pixel), scale = T(1), shift = T(0);
    Pack<E, kWide> out;
    RC_UNROLL
    for (int i = 0; i < kWide; ++i) {
      if (i > 0 && !last) m = mask_at(pixel + i);
      if (i == 0 || last) {
        if (args.scale) scale = static_cast<const T*>(args.scale)[channel + i];
        if (args.shift) shift = static_cast<const T*>(args.shift)[channel + i];
      }
      out.v[i] = convert<E>(epilogue(convert<T>(x.v[i]), scale, shift, affine, args.relu, m));
    }
    *reinterpret_cast<Pack<E, kWide>*>(static_cast<E*>(args.out) + image * args.channels * pixels +
                                       e) = out;
  });
}

}  // namespace

void epilogue_cuda(const EpilogueArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    const int64_t pixels = args.rows * args.columns, elements = args.channels * pixels;
    const bool whole = (args.channels_last ? args.channels : pixels) % kPack<E> == 0 &&
                       args.x.strides[0] % kPack<E> == 0 && is_aligned(args.x.data) &&
                       is_aligned(args.out);
    for_pack_width<E>(args.images, elements, whole, [&](auto index, auto wide, int64_t units) {
      launch(epilogue_kernel<E, decltype(index), wide()>, units, kThreads, stream, args);
    });
  });
}

}  // namespace robustcore::masking
