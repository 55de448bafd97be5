#include "attacks/elements_cuda.h"
#include "attacks/perceptual.h"
#include "common/rows_cuda.h"

namespace robustcore::attacks {
namespace {

// A block has a pixel a lane, and shares the channels out between its warps: loads of neighbouring
// pixels are neighbours, and a small map of many channels still fills the device.
constexpr int kPixels = kWarp;
static_assert(kWarpsPerBlock == kParts, "a warp is a part of a sum");

struct Place {
  int lane = threadIdx.x % kPixels, part = threadIdx.x / kPixels;
};

// sum_c term(c) of the thread's pixel, the same in all warps.
template <class T, class Term>
__device__ __forceinline__ T sum_channels(const Place& place, int64_t channels, const Term& term) {
  __shared__ T parts[kParts][kPixels];
  T sum = 0;
  for (int64_t c = place.part; c < channels; c += kParts) sum += term(c);
  parts[place.part][place.lane] = sum;
  __syncthreads();
  T v[kParts];
  RC_UNROLL
  for (int i = 0; i < kParts; ++i) v[i] = parts[i][place.lane];
  RC_UNROLL
  for (int half = kParts / 2; half > 0; half /= 2) {
    RC_UNROLL
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  __syncthreads();  // before the next sum is written there
  return v[0];
}

// pulled(c) is the cotangent of the unit column's element.
template <class T, class Element, class Pulled>
__device__ __forceinline__ void return_to(const PerceptualArgs& args, const Place& place,
                                          Inverse<T> inverse, const Element& element,
                                          const Pulled& pulled, void* grad, int64_t at, bool live) {
  const T along =
      sum_channels<T>(place, args.channels, [&](int64_t c) { return element(c) * pulled(c); });
  if (!live) return;
  for (int64_t c = place.part; c < args.channels; c += kParts) {
    store_as(grad, args.dtype, at + c * args.pixels,
             returned(pulled(c), element(c), along, inverse));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    perceptual_kernel(const __grid_constant__ PerceptualArgs args) {
  const Place place;
  const int64_t all = args.images * args.pixels;
  for_units(ceil_div(all, kPixels), [&](int64_t unit) {
    const int64_t pixel = unit * kPixels + place.lane;
    const bool live = pixel < all;  // the others come along to the barriers, on pixel 0
    const int64_t image = live ? pixel / args.pixels : 0;
    const int64_t before = image * args.pixels;
    const int64_t at = before * args.channels + (live ? pixel - before : 0);
    const auto f = [&](int64_t c) {
      return read_as<T>(args.features, args.dtype, at + c * args.pixels);
    };
    const auto r = [&](int64_t c) {
      return read_as<T>(args.reference, args.dtype, at + c * args.pixels);
    };
    const auto of_f = Inverse<T>::of(
        sum_channels<T>(place, args.channels, [&](int64_t c) { return f(c) * f(c); }));
    const auto of_r = Inverse<T>::of(
        sum_channels<T>(place, args.channels, [&](int64_t c) { return r(c) * r(c); }));
    const auto gap = [&](int64_t c) { return f(c) * of_f.value - r(c) * of_r.value; };
    if (args.distance) {
      const T distance = sum_channels<T>(
          place, args.channels, [&](int64_t c) { return weight_of<T>(args, c) * gap(c) * gap(c); });
      if (live && place.part == 0) static_cast<T*>(args.distance)[pixel] = distance;
      return;
    }
    const T upstream = live ? static_cast<const T*>(args.upstream)[pixel] : T(0);
    const auto pulled = [&](int64_t c) { return pull(weight_of<T>(args, c), upstream, gap(c)); };
    if (args.grad_features) {
      return_to(args, place, of_f, f, pulled, args.grad_features, at, live);
    }
    if (args.grad_reference) {
      return_to(
          args, place, of_r, r, [&](int64_t c) { return -pulled(c); }, args.grad_reference, at,
          live);
    }
  });
}

}  // namespace

void perceptual_cuda(const PerceptualArgs& args, void* stream) {
  dispatch_arithmetic(args.dtype, [&](auto tag) {
    launch(perceptual_kernel<decltype(tag)>, ceil_div(args.images * args.pixels, kPixels), kThreads,
           stream, args);
  });
}

}  // namespace robustcore::attacks
