#include "attacks/warp.h"
#include "common/cuda.h"

namespace robustcore::attacks {
namespace {

// A pixel of a pose a thread, of all channels: its taps are found once.
template <class E>
__global__ void __launch_bounds__(kThreads)
    warp_kernel(const __grid_constant__ WarpArgs args) {
  using T = Arithmetic<E>;
  const int rows = static_cast<int>(args.rows), columns = static_cast<int>(args.columns);
  const int64_t pixels = args.rows * args.columns;
  for_image_packs<uint32_t, 1>(args.images * args.poses, pixels, [&](int64_t at, uint32_t e) {
    const int64_t image = at / args.poses;
    const Pose<T> pose(args, image, at - image * args.poses);
    const int i = static_cast<int>(e) / columns, j = static_cast<int>(e) - i * columns;
    const Tap<T> down(pose.source_y(i, j), rows), right(pose.source_x(i, j), columns);
    const E* plane = static_cast<const E*>(args.in) + image * args.channels * pixels;
    E* out = static_cast<E*>(args.out) + at * args.channels * pixels + e;
    RC_ROLL
    for (int64_t c = 0; c < args.channels; ++c, plane += pixels, out += pixels) {
      *out = value_at(plane, down, right, rows, columns);
    }
  });
}

template <class E>
__global__ void __launch_bounds__(kThreads)
    warp_transposed_kernel(const __grid_constant__ WarpArgs args) {
  const int columns = static_cast<int>(args.columns);
  const int64_t pixels = args.rows * args.columns;
  for_image_packs<uint32_t, 1>(
      args.images * args.channels, pixels, [&](int64_t plane, uint32_t e) {
        const int64_t image = plane / args.channels;
        const int y = static_cast<int>(e) / columns, x = static_cast<int>(e) - y * columns;
        static_cast<E*>(args.out)[plane * pixels + e] =
            gathered_at<E>(args, image, plane - image * args.channels, y, x);
      });
}

template <class Kernel>
void launch_planes(Kernel kernel, int64_t planes, const WarpArgs& args, void* stream) {
  launch(kernel, planes * ceil_div(args.rows * args.columns, kThreads), kThreads, stream, args);
}

}  // namespace

void warp_cuda(const WarpArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto tag) {
    launch_planes(warp_kernel<decltype(tag)>, args.images * args.poses, args, stream);
  });
}

void warp_transposed_cuda(const WarpArgs& args, void* stream) {
  dispatch(args.dtype, [&](auto tag) {
    launch_planes(warp_transposed_kernel<decltype(tag)>, args.images * args.channels, args, stream);
  });
}

}  // namespace robustcore::attacks
