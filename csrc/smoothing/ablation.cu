#include "common/cuda.h"
#include "smoothing/ablation.h"

namespace robustcore::smoothing {
namespace {

// A block makes one mask: its threads draw, and one of them marks, since each mark depends on those
// before it. Marks of images up to 256 x 256 stay in shared memory until they are complete.
constexpr int kMaskThreads = 64, kMaskDraws = 4 * kMaskThreads;
constexpr int64_t kSharedWords = 2048;

// Draws for steps [first, first + kMaskDraws) of Floyd's algorithm, as many as there are.
__device__ void draw_steps(const PixelMaskArgs& args, int64_t image, int64_t sample, int64_t first,
                           uint32_t (&drawn)[kMaskDraws]) {
  const int64_t marked = marked_pixels(args), step = first + 4 * threadIdx.x;
  if (step >= marked) return;
  uint32_t words[4];
  stream_words(args.stream.seed, Domain::kAblation, image, sample, static_cast<uint32_t>(step / 4),
               words);
  RC_UNROLL
  for (int i = 0; i < 4; ++i) {
    const auto at = static_cast<uint32_t>(step + i);
    const auto bound = static_cast<uint32_t>(args.pixels - marked + at + 1);
    drawn[4 * threadIdx.x + i] = draw_below(words[i], bound, args.stream.seed, image, sample, at);
  }
}

__global__ void __launch_bounds__(kMaskThreads)
    pixel_masks_kernel(const __grid_constant__ PixelMaskArgs args) {
  __shared__ uint32_t local[kSharedWords], drawn[kMaskDraws];
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream);
  const int64_t words = mask_words(args.pixels), marked = marked_pixels(args);
  const uint32_t inverted = marked != args.kept ? ~0u : 0u;

  for_units(args.images * args.samples, [&](int64_t unit) {
    uint32_t* mask = args.masks + unit * words;
    uint32_t* marks = words <= kSharedWords ? local : mask;
    for (int64_t w = threadIdx.x; w < words; w += kMaskThreads) marks[w] = 0;
    for (int64_t first = 0; first < marked; first += kMaskDraws) {
      draw_steps(args, image0 + unit / args.samples, sample0 + unit % args.samples, first, drawn);
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
  });
}

__global__ void __launch_bounds__(kThreads)
    patch_masks_kernel(const __grid_constant__ PatchMaskArgs args) {
  const int64_t words = mask_words(args.height * args.width);
  for_items(args.samples * words, [&](int64_t i) {
    const int64_t position = args.first + i / words;
    args.masks[i] = window_word(args, position / args.columns * args.stride_h,
                                position % args.columns * args.stride_w, i % words);
  });
}

// Sizes that would take registers: in constant memory, they take none.
struct AblationGrid {
  int64_t elements, words;              // of an image
  int64_t inner;                        // the faster of channel and pixel
  int64_t tiles, runs, samples, units;  // a unit: a tile of an image over a run of samples
  bool quads;
};

// Four neighbouring outputs of a thread, in memory order: their values kept and not kept, and where
// the masks say which.
template <class Out>
struct Selection {
  Quad<Out> kept, other;
  int word[4], bit[4];

  // `slots` are in shared memory: each thread fills its own in a loop that stays rolled (the
  // general loads are long), and reads them back into registers.
  __device__ Selection(const SelectArgs& args, const AblationGrid& grid, int64_t image,
                       int64_t first, Out (&slots)[2][4][kThreads]) {
    using T = Arithmetic<Out>;
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
      slots[0][i][threadIdx.x] = convert<Out>(value(args.values));
      slots[1][i][threadIdx.x] = convert<Out>(value(args.fill));
    }
    int64_t a = first / grid.inner, b = first % grid.inner;
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      kept.v[i] = slots[0][i][threadIdx.x], other.v[i] = slots[1][i][threadIdx.x];
      // Past the last element: some pixel, whose output is not written.
      const auto p = static_cast<int>(first + i >= grid.elements ? 0 : args.channels_last ? a : b);
      word[i] = p / 32, bit[i] = p % 32;
      if (++b == grid.inner) b = 0, ++a;
    }
  }

  __device__ Quad<Out> of(const uint32_t* bits) const {
    Quad<Out> quad;
    RC_UNROLL
    for (int i = 0; i < 4; ++i) quad.v[i] = bits[word[i]] >> bit[i] & 1 ? kept.v[i] : other.v[i];
    return quad;
  }
};

template <class Out>
__global__ void __launch_bounds__(kThreads)
    select_kernel(const __grid_constant__ SelectArgs args,
                  const __grid_constant__ AblationGrid grid) {
  __shared__ Out slots[2][4][kThreads];
  for_units(grid.units, [&](int64_t unit) {
    const int64_t image = unit / grid.runs / grid.tiles;
    const int64_t first = 4 * (unit / grid.runs % grid.tiles * kThreads + threadIdx.x);
    if (first >= grid.elements) return;
    const Selection<Out> selection(args, grid, image, first, slots);
    const int64_t s_begin = unit % grid.runs * grid.samples, left = args.samples - s_begin;
    const int count = static_cast<int>(left < grid.samples ? left : grid.samples);
    const uint32_t* bits =
        mask_row(args.masks, args.mask_images, args.samples, args.pixels, image, s_begin);
    Out* out =
        static_cast<Out*>(args.out) + (image * args.samples + s_begin) * grid.elements + first;
    for (int s = 0; s < count; ++s, bits += grid.words, out += grid.elements) {
      const Quad<Out> quad = selection.of(bits);
      if (grid.quads) {
        *reinterpret_cast<Quad<Out>*>(out) = quad;
      } else {
        RC_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (first + i < grid.elements) out[i] = quad.v[i];
        }
      }
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    kept_sums_kernel(const __grid_constant__ KeptSumsArgs args,
                     const __grid_constant__ AblationGrid grid) {
  for_items(grid.units, [&](int64_t i) {
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
  });
}

template <class Out>
void launch_select(const SelectArgs& args, void* stream) {
  AblationGrid grid{};
  grid.elements = args.channels * args.pixels, grid.words = mask_words(args.pixels);
  grid.inner = args.channels_last ? args.channels : args.pixels;
  grid.tiles = ceil_div(ceil_div(grid.elements, 4), kThreads);
  const int64_t spread = ceil_div(args.images * grid.tiles * args.samples, blocks_wanted());
  grid.samples = spread < 64 ? spread : 64;
  grid.runs = ceil_div(args.samples, grid.samples);
  grid.units = args.images * grid.tiles * grid.runs;
  grid.quads = grid.elements % 4 == 0 && reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
  launch(select_kernel<Out>, grid.units, kThreads, stream, args, grid);
}

template <class T>
void launch_kept_sums(const KeptSumsArgs& args, void* stream) {
  AblationGrid grid{};
  grid.elements = args.channels * args.pixels, grid.words = mask_words(args.pixels);
  grid.units = args.images * grid.elements;  // one output each
  launch_items(kept_sums_kernel<T>, grid.units, stream, args, grid);
}

}  // namespace

void pixel_masks_cuda(const PixelMaskArgs& args, void* stream) {
  launch(pixel_masks_kernel, args.images * args.samples, kMaskThreads, stream, args);
}

void patch_masks_cuda(const PatchMaskArgs& args, void* stream) {
  const int64_t words = mask_words(args.height * args.width);
  launch_items(patch_masks_kernel, args.samples * words, stream, args);
}

void select_cuda(const SelectArgs& args, void* stream) {
  dispatch(args.out_dtype, [&](auto tag) { launch_select<decltype(tag)>(args, stream); });
}

void kept_sums_cuda(const KeptSumsArgs& args, void* stream) {
  if (args.grad.dtype == DType::kFloat64) {
    launch_kept_sums<double>(args, stream);
  } else {
    launch_kept_sums<float>(args, stream);
  }
}

}  // namespace robustcore::smoothing
