#include "attacks/elements_cuda.h"
#include "attacks/warp.h"

namespace robustcore::attacks {
namespace {

// A pixel of a pose a thread, of all channels: its taps are found once.
template <class T>
__global__ void __launch_bounds__(kThreads) warp_kernel(const __grid_constant__ WarpArgs args) {
  const int rows = static_cast<int>(args.rows), columns = static_cast<int>(args.columns);
  const int64_t pixels = args.rows * args.columns;
  for_image_packs<uint32_t, 1>(args.images * args.poses, pixels, [&](int64_t at, uint32_t e) {
    const int64_t image = at / args.poses;
    const Pose<T> pose(args, image, at - image * args.poses);
    const int i = static_cast<int>(e) / columns, j = static_cast<int>(e) - i * columns;
    const Tap<T> down(pose.source_y(i, j), rows), right(pose.source_x(i, j), columns);
    RC_ROLL
    for (int64_t c = 0; c < args.channels; ++c) {
      const int64_t plane = (image * args.channels + c) * pixels;
      const auto read = [&](int64_t k) { return read_as<T>(args.in, args.dtype, plane + k); };
      store_as(args.out, args.dtype, (at * args.channels + c) * pixels + e,
               value_at(read, down, right, rows, columns));
    }
  });
}

// What pixel (y, x) of a plane receives of all poses.
template <class T>
__device__ __forceinline__ T gathered_at(const WarpArgs& args, int64_t image, int64_t channel,
                                         int y, int x) {
  const int rows = static_cast<int>(args.rows), columns = static_cast<int>(args.columns);
  T sum = 0;
  for (int64_t p = 0; p < args.poses; ++p) {
    const Pose<T> pose(args, image, p);
    const int64_t plane =
        ((image * args.poses + p) * args.channels + channel) * args.rows * args.columns;
    const Range down = range_around(pose.target_y(y, x), pose.reach(), rows);
    const Range right = range_around(pose.target_x(y, x), pose.reach(), columns);
    for (int i = down.first; i <= down.last; ++i) {
      for (int j = right.first; j <= right.last; ++j) {
        const Tap<T> down_tap(pose.source_y(i, j), rows), right_tap(pose.source_x(i, j), columns);
        if (!down_tap.reads(y) || !right_tap.reads(x)) continue;
        const T weight = down_tap.weight(y) * right_tap.weight(x);
        const int64_t at = plane + static_cast<int64_t>(i) * columns + j;
        sum = OneLane<T>::fma(weight, read_as<T>(args.in, args.dtype, at), sum);
      }
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    warp_transposed_kernel(const __grid_constant__ WarpArgs args) {
  const int columns = static_cast<int>(args.columns);
  const int64_t pixels = args.rows * args.columns;
  for_image_packs<uint32_t, 1>(args.images * args.channels, pixels, [&](int64_t plane, uint32_t e) {
    const int64_t image = plane / args.channels;
    const int y = static_cast<int>(e) / columns, x = static_cast<int>(e) - y * columns;
    store_as(args.out, args.dtype, plane * pixels + e,
             gathered_at<T>(args, image, plane - image * args.channels, y, x));
  });
}

int64_t blocks_of(const WarpArgs& args, int64_t planes) {
  return planes * ceil_div(args.rows * args.columns, kThreads);
}

}  // namespace

void warp_cuda(const WarpArgs& args, void* stream) {
  dispatch_arithmetic(args.dtype, [&](auto tag) {
    launch(warp_kernel<decltype(tag)>, blocks_of(args, args.images * args.poses), kThreads, stream,
           args);
  });
}

void warp_transposed_cuda(const WarpArgs& args, void* stream) {
  dispatch_arithmetic(args.dtype, [&](auto tag) {
    launch(warp_transposed_kernel<decltype(tag)>, blocks_of(args, args.images * args.channels),
           kThreads, stream, args);
  });
}

}  // namespace robustcore::attacks
