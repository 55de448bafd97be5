#include "common/quads.h"
#include "smoothing/noise.h"

namespace robustcore::smoothing {
namespace {

// A block owns `columns` columns of one image; its rows of threads take one run of samples each,
// and the runs are added in order, as on the CPU. Small images get few columns a block, so that one
// image alone keeps the processors busy.
struct SumGrid {
  int32_t columns, rows;  // columns * rows == kThreads
  int64_t tiles;          // of an image
  QuadSource grad;
  bool quads;  // a column is one aligned read

  explicit SumGrid(const SumsArgs& args) : columns(32), grad(args.grad, 0) {
    quads = grad.access == Access::kRun && args.grad.sample_stride % 4 == 0;
    const int64_t quads = ceil_div(args.elements, 4), wave = blocks_wanted() / 16;
    // Four columns read 64 bytes one after the other, of float32.
    while (columns > 4 && args.images * ceil_div(quads, columns) < wave) columns /= 2;
    rows = kThreads / columns;
    tiles = ceil_div(quads, columns);
  }
};

template <class T>
using Sums = T[2][4];  // of the gradient and of its product with the noise, a column each

// The gradient of a column's sample; at[i] is where element i of sample 0 lies, -1 past the end.
template <class T>
__device__ void load_sample(const SumsArgs& args, bool quads, const int64_t (&at)[4], int64_t s,
                            T (&g)[4]) {
  dispatch_narrow<T>(args.grad.dtype, [&](auto tag) {
    using E = decltype(tag);
    const E* grad = static_cast<const E*>(args.grad.data) + s * args.grad.sample_stride;
    Quad<E> quad{};
    if (quads && at[0] >= 0) {
      quad = *reinterpret_cast<const Quad<E>*>(grad + at[0]);
    } else {
      RC_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (at[i] >= 0) quad.v[i] = grad[at[i]];
      }
    }
    RC_UNROLL
    for (int i = 0; i < 4; ++i) g[i] = convert<T>(quad.v[i]);
  });
}

// Adds samples [begin, end) of a column. What a sample needs is on its way while the noise of the
// one before is drawn.
template <Distribution kDistribution, class T>
__device__ void add_samples(const SumsArgs& args, bool quads, const PhiloxKey& key,
                            const PhiloxKeys<Scalar>& keys, int64_t image, int64_t column,
                            const int64_t (&at)[4], int64_t begin, int64_t end, Sums<T>& part) {
  const auto counter = philox_column<Scalar>(static_cast<uint32_t>(column));
  const int64_t sample0 = first_sample(args.stream), index = first_image(args.stream) + image;
  T next[4];
  if (begin < end) load_sample(args, quads, at, begin, next);
  RC_ROLL
  for (int64_t s = begin; s < end; ++s) {
    T g[4];
    RC_UNROLL
    for (int i = 0; i < 4; ++i) g[i] = next[i];
    if (s + 1 < end) load_sample(args, quads, at, s + 1, next);
    float z[4] = {};
    if (args.noise_sum) {
      const PhiloxRow row = stream_row(key, domain_of(kDistribution), index, sample0 + s);
      draw<kDistribution, Scalar>(row, counter, keys, z);
    }
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      part[0][i] += g[i];
      part[1][i] = fused_multiply_add(g[i], static_cast<T>(z[i]), part[1][i]);
    }
  }
}

template <class T, Distribution kDistribution>
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(const __grid_constant__ SumsArgs args, const __grid_constant__ SumGrid grid,
                const __grid_constant__ PhiloxKey key) {
  __shared__ Sums<T> parts[kThreads];
  const int lane = threadIdx.x % grid.columns, row = threadIdx.x / grid.columns;
  const int64_t runs = ceil_div(args.samples, kSumRun);
  const PhiloxKeys<Scalar> keys(key);

  for_units(args.images * grid.tiles, [&](int64_t unit) {
    const int64_t image = unit / grid.tiles, column = unit % grid.tiles * grid.columns + lane;
    int64_t at[4];
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t e = 4 * column + i;
      at[i] = e < args.elements ? grid.grad.offset(image, e) : -1;
    }
    Sums<T> total = {};
    for (int64_t wave = 0; wave < runs; wave += grid.rows) {
      Sums<T> part = {};
      const int64_t begin = (wave + row) * kSumRun;
      const int64_t end = begin + kSumRun < args.samples ? begin + kSumRun : args.samples;
      add_samples<kDistribution>(args, grid.quads, key, keys, image, column, at, begin, end, part);
      RC_UNROLL
      for (int i = 0; i < 8; ++i) parts[threadIdx.x][i / 4][i % 4] = part[i / 4][i % 4];
      __syncthreads();
      for (int r = 0; row == 0 && r < grid.rows && wave + r < runs; ++r) {
        RC_UNROLL
        for (int i = 0; i < 8; ++i)
          total[i / 4][i % 4] += parts[r * grid.columns + lane][i / 4][i % 4];
      }
      __syncthreads();
    }
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (row != 0 || at[i] < 0) continue;
      const int64_t to = image * args.elements + 4 * column + i;
      static_cast<T*>(args.sum)[to] = total[0][i];
      if (args.noise_sum) static_cast<T*>(args.noise_sum)[to] = total[1][i];
    }
  });
}

template <class T, Distribution kDistribution>
void launch_sums(const SumsArgs& args, void* stream) {
  const SumGrid grid(args);
  launch(sums_kernel<T, kDistribution>, args.images * grid.tiles, kThreads, stream, args, grid,
         philox_key(args.stream.seed));
}

}  // namespace

void sums_cuda(const SumsArgs& args, void* stream) {
  for_affine(args.distribution, [&](auto of) {
    if (args.grad.dtype == DType::kFloat64) {
      launch_sums<double, of()>(args, stream);
    } else {
      launch_sums<float, of()>(args, stream);
    }
  });
}

}  // namespace robustcore::smoothing
