#include "common/launch.h"
#include "smoothing/launch.h"
#include "smoothing/smoothing.h"

namespace robustcore::smoothing {
namespace {

constexpr int kThreads = 256;

// Four consecutive outputs, written with as few instructions as their size allows.
template <class Out>
struct alignas(sizeof(Out) * 4 > 16 ? 16 : sizeof(Out) * 4) Quad {
  Out v[4];
};

}  // namespace
}  // namespace robustcore::smoothing

#include "smoothing/ablation_cuda.h"

namespace robustcore::smoothing {
namespace {

// ---- noise ---------------------------------------------------------------------------------------

// A block works on a tile of columns (four elements each, of kChannels channels) and a run of
// samples: what depends on the column alone stays in registers over the run, what depends on the
// sample alone in shared memory. Narrow images put several samples side by side in a block.
struct NoiseGrid {
  int32_t columns, rows;              // of a block's threads: columns * rows == kThreads
  int64_t column_tiles, sample_runs;  // in all, per image
  int64_t samples;                    // of a run, at most kThreads
  uint32_t keys[kPhiloxRounds][2];    // in constant memory, an operand of every round
};

// What of element e of an image does not depend on the sample, as in Epilogue on the CPU: base and
// scale of an affine distribution, x, gain and shift of splitting.
template <class T, Distribution kDistribution>
__device__ void load_epilogue(const NoiseArgs& args, int64_t image, int64_t e, T& base, T& scale,
                              T& shift) {
  const auto value = [&](const StridedView& view, T absent) {
    if (!view.data) return absent;
    return load_as<T>(view.data, view.dtype, image * view.image_stride + element_offset(view, e));
  };
  const T mean = value(args.mean, T(0)), std = value(args.std, T(1));
  base = value(args.x, T(0));
  if constexpr (kDistribution == Distribution::kSplitting) {
    prepare_split(args, mean, std, base, scale, shift);
  } else {
    scale = value(args.sigma, static_cast<T>(args.sigma_value));
    if (args.mean.data || args.std.data) {
      base = affine_base(base, mean, std);
      scale = scale / std;
    }
  }
}

enum class Write {
  kQuads,    // a column is an aligned run of 4 * kChannels outputs
  kScatter,  // each element finds its own place
};

// Blocks that share a processor: as many as leave each thread the registers it needs.
template <Distribution kDistribution, int kChannels>
constexpr int kBlocks =
    (kChannels == 1 ? 4 : 3) - (kDistribution == Distribution::kGaussian ? 0 : 1) -
    (kDistribution == Distribution::kSplitting && kChannels == 1 ? 1 : 0);

template <class Out, Distribution kDistribution, int kChannels, Write kWrite>
__global__ void __launch_bounds__(kThreads, kBlocks<kDistribution, kChannels>)
    noise_kernel(const __grid_constant__ NoiseArgs args, const __grid_constant__ NoiseGrid grid) {
  using T = Arithmetic<Out>;
  using One = std::conditional_t<std::is_same_v<T, double>, ScalarDouble, Scalar>;
  constexpr bool kSplit = kDistribution == Distribution::kSplitting;
  constexpr int kElements = 4 * kChannels;  // of a column
  __shared__ PhiloxRow rows[kThreads];
  __shared__ T bases[kElements][kThreads], scales[kElements][kThreads];
  __shared__ T shifts[kSplit ? kElements : 1][kThreads];
  Split<T> split{};
  if constexpr (kSplit) split = make_split<T>(args);
  const bool in_turn = kSplit && args.levels > 0;
  const int64_t pixels = args.elements / args.channels;
  // A column holds elements plane * c + [4 column, 4 column + 4), c < kChannels.
  const int64_t plane = kChannels == 1 ? args.elements : pixels;
  const int64_t columns = ceil_div(plane, 4);
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream);
  const int64_t units = args.images * grid.column_tiles * grid.sample_runs;
  const int lane = threadIdx.x % grid.columns, row = threadIdx.x / grid.columns;

  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t run = unit % grid.sample_runs;
    const int64_t tile = unit / grid.sample_runs % grid.column_tiles;
    const int64_t image = unit / grid.sample_runs / grid.column_tiles;
    const int64_t s_begin = run * grid.samples;
    const int64_t left = args.samples - s_begin;
    const int count = static_cast<int>(left < grid.samples ? left : grid.samples);
    if (static_cast<int>(threadIdx.x) < count) {
      PhiloxKey key;
      RC_UNROLL
      for (int r = 0; r < 3; ++r) key.k0[r] = grid.keys[r][0], key.k1[r] = grid.keys[r][1];
      // Thresholds in turn: one offset an element, the same for every image and sample.
      const int64_t sample = in_turn ? 0 : sample0 + s_begin + threadIdx.x;
      rows[threadIdx.x] = stream_row(key, static_cast<uint32_t>(kDistribution),
                                     in_turn ? 0 : image0 + image, sample);
    }
    // Each thread fills its own slots in a loop that stays rolled (the general loads are long), and
    // reads them back into registers.
    const int64_t column = tile * grid.columns + lane;
    RC_ROLL
    for (int j = 0; j < kElements; ++j) {
      const int64_t e = j / 4 * plane + 4 * column + j % 4;
      T base = 0, scale = 0, shift = 0;
      if (e < args.elements) {
        load_epilogue<T, kDistribution>(args, image, e, base, scale, shift);
      }
      bases[j][threadIdx.x] = base;
      scales[j][threadIdx.x] = scale;
      if constexpr (kSplit) shifts[j][threadIdx.x] = shift;
    }
    __syncthreads();

    if (column < columns) {
      T base[kElements], scale[kElements];
      PhiloxColumn<Scalar> counter[kChannels];
      int64_t at[4] = {};
      RC_UNROLL
      for (int j = 0; j < kElements; ++j) {
        base[j] = bases[j][threadIdx.x];
        scale[j] = scales[j][threadIdx.x];
      }
      RC_UNROLL
      for (int c = 0; c < kChannels; ++c) {
        counter[c] = philox_column<Scalar>(static_cast<uint32_t>((c * plane + 4 * column) / 4));
      }
      if constexpr (kWrite == Write::kScatter) {
        int64_t c = 4 * column / pixels, p = 4 * column % pixels;
        RC_UNROLL
        for (int i = 0; i < 4; ++i) {
          at[i] = p * args.channels + c;
          if (++p == pixels) p = 0, ++c;
        }
      }
      Out* out = static_cast<Out*>(args.out) + (image * args.samples + s_begin) * args.elements;
      RC_ROLL
      for (int s = row; s < count; s += grid.rows) {
        Quad<Out> quads[kChannels];  // in memory order: element i of channel c at i * kChannels + c
        if (in_turn) split.index = static_cast<T>((sample0 + s_begin + s) % args.levels);
        RC_UNROLL
        for (int c = 0; c < kChannels; ++c) {
          float z[4];
          draw<kDistribution, Scalar>(rows[s], counter[c], grid.keys, z);
          RC_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int to = i * kChannels + c, j = 4 * c + i;
            const T v = static_cast<T>(z[i]);
            T result;
            if constexpr (kSplit) {
              const T cut =
                  split.template operator()<One>(base[j], split.template threshold<One>(v));
              result = fused_multiply_add(scale[j], cut, shifts[j][threadIdx.x]);
            } else {
              result = fused_multiply_add(scale[j], v, base[j]);
            }
            quads[to / 4].v[to % 4] = convert<Out>(result);
          }
        }
        Out* sample = out + s * args.elements;
        if constexpr (kWrite == Write::kQuads) {
          auto* to = reinterpret_cast<Quad<Out>*>(sample + kElements * column);
          RC_UNROLL
          for (int c = 0; c < kChannels; ++c) to[c] = quads[c];
        } else {
          RC_UNROLL
          for (int i = 0; i < 4; ++i) {
            if (4 * column + i < args.elements) sample[at[i]] = quads[0].v[i];
          }
        }
      }
    }
    __syncthreads();
  }
}

template <class Out, Distribution kDistribution, int kChannels, Write kWrite>
void launch_noise(const NoiseArgs& args, cudaStream_t stream) {
  NoiseGrid grid{};
  const int64_t columns = ceil_div(args.elements / kChannels, 4);
  grid.columns = kThreads;
  while (grid.columns / 2 >= columns) grid.columns /= 2;
  grid.rows = kThreads / grid.columns;
  grid.column_tiles = ceil_div(columns, grid.columns);
  const int64_t spread = ceil_div(args.images * grid.column_tiles * args.samples, blocks_wanted());
  grid.samples = spread < grid.rows ? grid.rows : spread > kThreads ? kThreads : spread;
  grid.sample_runs = ceil_div(args.samples, grid.samples);
  const PhiloxKey key = philox_key(args.stream.seed);
  for (int r = 0; r < kPhiloxRounds; ++r) grid.keys[r][0] = key.k0[r], grid.keys[r][1] = key.k1[r];
  const auto kernel = noise_kernel<Out, kDistribution, kChannels, kWrite>;
  RC_LAUNCH(kernel, grid_for(args.images * grid.column_tiles * grid.sample_runs), kThreads, stream,
            args, grid);
  check_cuda(cudaGetLastError());
}

// ---- sums ----------------------------------------------------------------------------------------

// A block owns kSumColumns columns of one image; its rows take one run of samples each, and the
// runs are added in order, as on the CPU.
constexpr int kSumColumns = 32, kSumRows = kThreads / kSumColumns;

template <class T, Distribution kDistribution>
__global__ void __launch_bounds__(kThreads, 2)
    sums_kernel(const __grid_constant__ SumsArgs args, const __grid_constant__ PhiloxKey key) {
  __shared__ T parts[2][kSumRows][kSumColumns][4];
  const int lane = threadIdx.x % kSumColumns, row = threadIdx.x / kSumColumns;
  const int64_t columns = ceil_div(args.elements, 4), tiles = ceil_div(columns, kSumColumns);
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream);
  const int64_t runs = ceil_div(args.samples, kSumRun);
  uint32_t keys[kPhiloxRounds][2];
  RC_UNROLL
  for (int r = 0; r < kPhiloxRounds; ++r) keys[r][0] = key.k0[r], keys[r][1] = key.k1[r];

  for (int64_t unit = blockIdx.x; unit < args.images * tiles; unit += gridDim.x) {
    const int64_t image = unit / tiles, column = unit % tiles * kSumColumns + lane;
    const auto counter = philox_column<Scalar>(static_cast<uint32_t>(column));
    int64_t at[4];
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t e = 4 * column + i;
      at[i] =
          e < args.elements ? image * args.grad.image_stride + element_offset(args.grad, e) : -1;
    }
    T total[2][4] = {};
    for (int64_t wave = 0; wave < runs; wave += kSumRows) {
      T part[2][4] = {};
      const int64_t begin = (wave + row) * kSumRun;
      const int64_t end = begin + kSumRun < args.samples ? begin + kSumRun : args.samples;
      for (int64_t s = begin; s < end; ++s) {
        float z[4] = {};
        if (args.noise_sum) {
          const PhiloxRow r =
              stream_row(key, static_cast<uint32_t>(kDistribution), image0 + image, sample0 + s);
          draw<kDistribution, Scalar>(r, counter, keys, z);
        }
        RC_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (at[i] < 0) continue;
          const T g =
              load_as<T>(args.grad.data, args.grad.dtype, at[i] + s * args.grad.sample_stride);
          part[0][i] += g;
          part[1][i] = fused_multiply_add(g, static_cast<T>(z[i]), part[1][i]);
        }
      }
      RC_UNROLL
      for (int i = 0; i < 4; ++i) {
        parts[0][row][lane][i] = part[0][i];
        parts[1][row][lane][i] = part[1][i];
      }
      __syncthreads();
      if (row == 0) {
        for (int r = 0; r < kSumRows && wave + r < runs; ++r) {
          RC_UNROLL
          for (int i = 0; i < 4; ++i) {
            total[0][i] += parts[0][r][lane][i];
            total[1][i] += parts[1][r][lane][i];
          }
        }
      }
      __syncthreads();
    }
    if (row == 0) {
      RC_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (at[i] < 0) continue;
        const int64_t to = image * args.elements + 4 * column + i;
        static_cast<T*>(args.sum)[to] = total[0][i];
        if (args.noise_sum) static_cast<T*>(args.noise_sum)[to] = total[1][i];
      }
    }
  }
}

template <class T, Distribution kDistribution>
void launch_sums(const SumsArgs& args, cudaStream_t stream) {
  const int64_t units = args.images * ceil_div(ceil_div(args.elements, 4), kSumColumns);
  const auto kernel = sums_kernel<T, kDistribution>;
  RC_LAUNCH(kernel, grid_for(units), kThreads, stream, args, philox_key(args.stream.seed));
  check_cuda(cudaGetLastError());
}

// ---- votes ---------------------------------------------------------------------------------------

constexpr int kSharedClasses = 4096;  // histograms up to here fit in shared memory
constexpr int64_t kVoteRows = 64;     // rows of a group in a unit

// kGroup neighbouring threads read one row.
template <class In, int kGroup>
__global__ void __launch_bounds__(kThreads) votes_kernel(const __grid_constant__ VotesArgs args) {
  using T = Arithmetic<In>;
  __shared__ int local[kSharedClasses];
  constexpr int kGroups = kThreads / kGroup;
  const int lane = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
  const int64_t unit_rows = kGroups * kVoteRows, units = ceil_div(args.samples, unit_rows);
  const StridedView& view = args.logits;
  const bool shared = args.classes <= kSharedClasses;

  for (int64_t unit = blockIdx.x; unit < args.images * units; unit += gridDim.x) {
    const int64_t image = unit / units, first = unit % units * unit_rows;
    const int64_t last = first + unit_rows < args.samples ? first + unit_rows : args.samples;
    auto* counts = reinterpret_cast<unsigned long long*>(args.counts + image * args.classes);
    if (shared) {
      for (int64_t k = threadIdx.x; k < args.classes; k += kThreads) local[k] = 0;
      __syncthreads();
    }
    // All threads make the same number of turns: shuffles need the whole warp.
    for (int64_t turn = first; turn < last; turn += kGroups) {
      const int64_t s = turn + group;
      T best = -INFINITY;
      int64_t best_at = args.classes;
      int nan = 0;
      if (s < last) {
        const In* logits =
            static_cast<const In*>(view.data) + image * view.image_stride + s * view.sample_stride;
        for (int64_t k = lane; k < args.classes; k += kGroup) {
          const T v = convert<T>(logits[k * view.strides[0]]);
          nan |= v != v;
          // The first class a thread sees stands even at -infinity.
          if (v > best || best_at == args.classes) best = v, best_at = k;
        }
      }
      RC_UNROLL
      for (int step = kGroup / 2; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(0xFFFFFFFFu, best, step);
        const int64_t other_at =
            __shfl_xor_sync(0xFFFFFFFFu, static_cast<long long>(best_at), step);
        nan |= __shfl_xor_sync(0xFFFFFFFFu, nan, step);
        if (other > best || (other == best && other_at < best_at)) best = other, best_at = other_at;
      }
      if (s >= last || lane != 0 || nan) continue;
      if (shared) {
        atomicAdd(&local[best_at], 1);
      } else {
        atomicAdd(&counts[best_at], 1ull);
      }
    }
    if (shared) {
      __syncthreads();
      for (int64_t k = threadIdx.x; k < args.classes; k += kThreads) {
        if (local[k]) atomicAdd(&counts[k], static_cast<unsigned long long>(local[k]));
      }
      __syncthreads();
    }
  }
}

template <class In, int kGroup>
void launch_votes(const VotesArgs& args, cudaStream_t stream) {
  const int64_t units = args.images * ceil_div(args.samples, kThreads / kGroup * kVoteRows);
  const auto kernel = votes_kernel<In, kGroup>;
  RC_LAUNCH(kernel, grid_for(units), kThreads, stream, args);
  check_cuda(cudaGetLastError());
}

}  // namespace

void noise_cuda(const NoiseArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const bool whole_quads =
      args.elements / args.channels % 4 == 0 && reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
  dispatch(args.out_dtype, [&](auto tag) {
    for_distribution(args.distribution, [&](auto of) {
      using Out = decltype(tag);
      // The layouts of images in the dtypes of models get kernels of their own.
      if constexpr (sizeof(Out) <= sizeof(float)) {
        if (whole_quads && args.channels == 1)
          return launch_noise<Out, of(), 1, Write::kQuads>(args, stream);
        if (whole_quads && args.channels == 3)
          return launch_noise<Out, of(), 3, Write::kQuads>(args, stream);
      }
      launch_noise<Out, of(), 1, Write::kScatter>(args, stream);
    });
  });
}

void sums_cuda(const SumsArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  for_affine(args.distribution, [&](auto of) {
    if (args.grad.dtype == DType::kFloat64) {
      launch_sums<double, of()>(args, stream);
    } else {
      launch_sums<float, of()>(args, stream);
    }
  });
}

void votes_cuda(const VotesArgs& args, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  check_cuda(cudaMemsetAsync(args.counts, 0, args.images * args.classes * sizeof(int64_t), stream));
  if (args.samples == 0) return;
  dispatch(args.logits.dtype, [&](auto tag) {
    using In = decltype(tag);
    if (args.classes <= 16) {
      launch_votes<In, 1>(args, stream);
    } else {
      launch_votes<In, 32>(args, stream);
    }
  });
}

}  // namespace robustcore::smoothing
