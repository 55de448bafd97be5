#include "common/cuda.h"
#include "masking/epilogue.h"

namespace robustcore::masking {
namespace {

template <class E>
__global__ void __launch_bounds__(kThreads)
    epilogue_kernel(const __grid_constant__ EpilogueArgs args) {
  using T = Arithmetic<E>;
  const int64_t pixels = args.rows * args.columns, image_size = pixels * args.channels;
  for_items(args.images * image_size, [&](int64_t item) {
    const int64_t image = item / image_size, e = item % image_size;
    const int64_t channel = args.channels_last ? e % args.channels : e / pixels;
    const int64_t pixel = args.channels_last ? e / args.channels : e % pixels;
    const T m = args.mask.data ? load_as<T>(args.mask.data, args.mask.dtype,
                                            offset_of(args.mask.strides, image, 0,
                                                      pixel / args.columns, pixel % args.columns))
                               : T(1);
    const T scale = args.scale ? static_cast<const T*>(args.scale)[channel] : T(1);
    const T shift = args.shift ? static_cast<const T*>(args.shift)[channel] : T(0);
    const T x = convert<T>(static_cast<const E*>(args.x.data)[image * args.x.strides[0] + e]);
    static_cast<E*>(args.out)[item] =
        convert<E>(epilogue(x, scale, shift, args.scale || args.shift, args.relu, m));
  });
}

}  // namespace

void epilogue_cuda(const EpilogueArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto tag) {
    launch_items(epilogue_kernel<decltype(tag)>,
                 args.images * args.channels * args.rows * args.columns, stream, args);
  });
}

}  // namespace robustcore::masking
