// The CUDA kernels of ablation; cuda.cu includes them.
#pragma once

#include "smoothing/ablation.h"

namespace robustcore::smoothing {
namespace {

// A block makes one mask: its threads draw, and one of them marks, since each mark depends on those
// before it. Marks of images up to 256 x 256 stay in shared memory until they are complete.
constexpr int kMaskThreads = 64, kMaskDraws = 4 * kMaskThreads;
constexpr int64_t kSharedWords = 2048;

__global__ void __launch_bounds__(kMaskThreads)
    pixel_masks_kernel(const __grid_constant__ PixelMaskArgs args) {
  __shared__ uint32_t local[kSharedWords], drawn[kMaskDraws];
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream),
                words = mask_words(args.pixels);
  const int64_t marked = marked_pixels(args);
  const PhiloxKey key = philox_key(args.stream.seed);
  const uint32_t inverted = marked != args.kept ? ~0u : 0u;

  for (int64_t unit = blockIdx.x; unit < args.images * args.samples; unit += gridDim.x) {
    const int64_t image = image0 + unit / args.samples;
    const int64_t sample = sample0 + unit % args.samples;
    uint32_t* mask = args.masks + unit * words;
    uint32_t* marks = words <= kSharedWords ? local : mask;
    for (int64_t w = threadIdx.x; w < words; w += kMaskThreads) marks[w] = 0;
    for (int64_t first = 0; first < marked; first += kMaskDraws) {
      const int64_t step = first + 4 * threadIdx.x;
      if (step < marked) {
        const uint32_t counter[4] = {static_cast<uint32_t>(step / 4), static_cast<uint32_t>(sample),
                                     static_cast<uint32_t>(image),
                                     kAblationDomain << 24 |
                                         static_cast<uint32_t>(sample >> 32 & 0xFF) << 16 |
                                         static_cast<uint32_t>(image >> 32 & 0xFFFF)};
        uint32_t out[4];
        philox4x32(counter, args.stream.seed, out);
        RC_UNROLL
        for (int i = 0; i < 4; ++i) {
          const auto at = static_cast<uint32_t>(step + i);
          const auto bound = static_cast<uint32_t>(args.pixels - marked + at + 1);
          drawn[4 * threadIdx.x + i] =
              draw_below(out[i], bound, args.stream.seed, image, sample, at);
        }
      }
      __syncthreads();
      if (threadIdx.x == 0) {
        const int64_t count = marked - first < kMaskDraws ? marked - first : kMaskDraws;
        for (int64_t i = 0; i < count; ++i) {
          mark(marks, drawn[i], static_cast<uint32_t>(args.pixels - marked + first + i));
        }
      }
      __syncthreads();
    }
    for (int64_t w = threadIdx.x; w < words; w += kMaskThreads) {
      uint32_t bits = marks[w] ^ inverted;
      if (w == words - 1 && args.pixels % 32) bits &= (1u << args.pixels % 32) - 1;
      mask[w] = bits;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    patch_masks_kernel(const __grid_constant__ PatchMaskArgs args) {
  const int64_t words = mask_words(args.height * args.width), all = args.samples * words;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < all; i += step) {
    const int64_t position = args.first + i / words;
    args.masks[i] = window_word(args, position / args.columns * args.stride_h,
                                position % args.columns * args.stride_w, i % words);
  }
}

// Sizes that would take registers: in constant memory, they take none.
struct AblationGrid {
  int64_t elements, words;              // of an image
  int64_t inner;                        // the faster of channel and pixel
  int64_t tiles, runs, samples, units;  // a unit: a tile of an image over a run of samples
  bool quads;
};

// A thread holds four neighbouring outputs, in memory order, over a run of samples.
template <class Out>
__global__ void __launch_bounds__(kThreads)
    select_kernel(const __grid_constant__ SelectArgs args,
                  const __grid_constant__ AblationGrid grid) {
  using T = Arithmetic<Out>;
  __shared__ Out kept_values[4][kThreads], other_values[4][kThreads];
  for (int64_t unit = blockIdx.x; unit < grid.units; unit += gridDim.x) {
    const int64_t image = unit / grid.runs / grid.tiles;
    const int64_t first = 4 * (unit / grid.runs % grid.tiles * kThreads + threadIdx.x);
    if (first >= grid.elements) continue;
    // Each thread fills its own slots in a loop that stays rolled (the general loads are long), and
    // reads them back into registers.
    RC_ROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t m = first + i, outer = m / grid.inner, inner = m % grid.inner;
      const int64_t e =
          args.channels_last ? inner * args.pixels + outer : outer * args.pixels + inner;
      const auto value = [&](const StridedView& view) {
        if (!view.data || m >= grid.elements) return T(0);
        return load_as<T>(view.data, view.dtype,
                          image * view.image_stride + element_offset(view, e));
      };
      kept_values[i][threadIdx.x] = convert<Out>(value(args.values));
      other_values[i][threadIdx.x] = convert<Out>(value(args.fill));
    }
    Quad<Out> kept, other;
    int word[4], bit[4];
    int64_t a = first / grid.inner, b = first % grid.inner;
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      kept.v[i] = kept_values[i][threadIdx.x], other.v[i] = other_values[i][threadIdx.x];
      // Past the last element: some pixel, whose output is not written.
      const auto p = static_cast<int>(first + i >= grid.elements ? 0 : args.channels_last ? a : b);
      word[i] = p / 32, bit[i] = p % 32;
      if (++b == grid.inner) b = 0, ++a;
    }
    const int64_t s_begin = unit % grid.runs * grid.samples;
    const int64_t left = args.samples - s_begin;
    const int count = static_cast<int>(left < grid.samples ? left : grid.samples);
    const uint32_t* bits =
        mask_row(args.masks, args.mask_images, args.samples, args.pixels, image, s_begin);
    Out* out =
        static_cast<Out*>(args.out) + (image * args.samples + s_begin) * grid.elements + first;
    for (int s = 0; s < count; ++s, bits += grid.words, out += grid.elements) {
      Quad<Out> quad;
      RC_UNROLL
      for (int i = 0; i < 4; ++i) quad.v[i] = bits[word[i]] >> bit[i] & 1 ? kept.v[i] : other.v[i];
      if (grid.quads) {
        *reinterpret_cast<Quad<Out>*>(out) = quad;
      } else {
        RC_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (first + i < grid.elements) out[i] = quad.v[i];
        }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    kept_sums_kernel(const __grid_constant__ KeptSumsArgs args,
                     const __grid_constant__ AblationGrid grid) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < grid.units;
       i += step) {
    const int64_t image = i / grid.elements, e = i % grid.elements;
    const auto p = static_cast<int>(e % args.pixels);
    int64_t from = image * args.grad.image_stride + element_offset(args.grad, e);
    const uint32_t* bits =
        mask_row(args.masks, args.mask_images, args.samples, args.pixels, image, 0) + p / 32;
    T sum = 0, part = 0;
    for (int64_t s = 0; s < args.samples; ++s) {
      part += *bits >> (p % 32) & 1 ? load_as<T>(args.grad.data, args.grad.dtype, from) : T(0);
      bits += grid.words, from += args.grad.sample_stride;
      if ((s + 1) % kSumRun == 0 || s + 1 == args.samples) sum += part, part = 0;
    }
    static_cast<T*>(args.sum)[i] = sum;
  }
}

template <class Out>
void launch_select(const SelectArgs& args, cudaStream_t stream) {
  AblationGrid grid{};
  grid.elements = args.channels * args.pixels, grid.words = mask_words(args.pixels);
  grid.inner = args.channels_last ? args.channels : args.pixels;
  grid.tiles = ceil_div(ceil_div(grid.elements, 4), kThreads);
  const int64_t spread = ceil_div(args.images * grid.tiles * args.samples, blocks_wanted());
  grid.samples = spread < 64 ? spread : 64;
  grid.runs = ceil_div(args.samples, grid.samples);
  grid.units = args.images * grid.tiles * grid.runs;
  grid.quads = grid.elements % 4 == 0 && reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
  const auto kernel = select_kernel<Out>;
  RC_LAUNCH(kernel, grid_for(grid.units), kThreads, stream, args, grid);
  check_cuda(cudaGetLastError());
}

template <class T>
void launch_kept_sums(const KeptSumsArgs& args, cudaStream_t stream) {
  AblationGrid grid{};
  grid.elements = args.channels * args.pixels, grid.words = mask_words(args.pixels);
  grid.units = args.images * grid.elements;  // one output each
  const auto kernel = kept_sums_kernel<T>;
  RC_LAUNCH(kernel, grid_for(ceil_div(grid.units, kThreads)), kThreads, stream, args, grid);
  check_cuda(cudaGetLastError());
}

}  // namespace

void pixel_masks_cuda(const PixelMaskArgs& args, void* stream_handle) {
  const auto kernel = pixel_masks_kernel;
  RC_LAUNCH(kernel, grid_for(args.images * args.samples), kMaskThreads,
            static_cast<cudaStream_t>(stream_handle), args);
  check_cuda(cudaGetLastError());
}

void patch_masks_cuda(const PatchMaskArgs& args, void* stream_handle) {
  const int64_t words = mask_words(args.height * args.width);
  const auto kernel = patch_masks_kernel;
  RC_LAUNCH(kernel, grid_for(ceil_div(args.samples * words, kThreads)), kThreads,
            static_cast<cudaStream_t>(stream_handle), args);
  check_cuda(cudaGetLastError());
}

void select_cuda(const SelectArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  dispatch(args.out_dtype, [&](auto tag) { launch_select<decltype(tag)>(args, stream); });
}

void kept_sums_cuda(const KeptSumsArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (args.grad.dtype == DType::kFloat64) {
    launch_kept_sums<double>(args, stream);
  } else {
    launch_kept_sums<float>(args, stream);
  }
}

}  // namespace robustcore::smoothing
