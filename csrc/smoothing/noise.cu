#include "common/quads.h"
#include "smoothing/noise.h"

namespace robustcore::smoothing {
namespace {

// A block works on a tile of columns (four elements each, of kChannels channels) and a run of
// samples: what depends on the column alone stays in registers over the run, what depends on the
// sample alone in shared memory. Narrow images put several samples side by side in a block. The
// runs of an image take turns at its samples, so that none is longer than another by more than one.
struct NoiseGrid {
  static constexpr int kThreads = 128;  // small, so that a short run still fills every processor
  static constexpr int kSources = 4;    // x, mean, std, sigma
  int32_t log_columns, rows;            // of a block's threads: columns * rows == kThreads
  bool scattered;                       // each element finds its own place; else a column is an
                                        // aligned run of 4 * kChannels outputs
  bool shared_gain;                     // by the elements of a quad
  int64_t plane;                        // elements between a column's channels
  Divisor tiles, runs;                  // of columns, of samples: of an image
  int32_t samples, longer;              // of a run, at most kThreads; so many runs have one more
  int64_t sample_bytes, column_bytes;   // of the outputs
  int64_t turn, step;                   // of a row of threads: samples and bytes
  PhiloxKeys<Scalar> keys;              // in constant memory, an operand of every round
  QuadSource sources[kSources];

  NoiseGrid(const NoiseArgs& args, int channels, bool scattered_)
      : scattered(scattered_),
        plane(channels == 1 ? args.elements : args.elements / args.channels),
        keys(philox_key(args.stream.seed)),
        sources{{args.x, 0}, {args.mean, 0}, {args.std, 1}, {args.sigma, args.sigma_value}} {
    const int64_t wanted = ceil_div(args.elements / channels, 4);
    for (log_columns = 7; log_columns > 0 && 1 << (log_columns - 1) >= wanted;) --log_columns;
    rows = kThreads >> log_columns;
    tiles = Divisor(ceil_div(wanted, 1 << log_columns));
    const int64_t count = runs_of(args, channels == 1 ? 4 : 2);
    runs = Divisor(count);
    samples = static_cast<int32_t>(args.samples / count);
    longer = static_cast<int32_t>(args.samples % count);
    dispatch(args.out_dtype, [&](auto tag) {
      sample_bytes = args.elements * static_cast<int64_t>(sizeof(tag));
      column_bytes = scattered ? 0 : 4 * channels * static_cast<int64_t>(sizeof(tag));
    });
    turn = rows * count, step = turn * sample_bytes;
    for (int i = 1; i < kSources; ++i) sources[i].repeat(sources[i - 1]);
    const auto same = [](const QuadSource& s) { return s.access <= Access::kSame; };
    shared_gain = same(sources[2]) && same(sources[3]);
  }
  int64_t units(const NoiseArgs& args) const {
    return args.images * tiles.value() * runs.value();
  }

 private:
  // Every block pays for its set-up, and the processor with the most turns to make is the last: the
  // best of a few blocks each, or runs that hide the set-up where there is more to do. `fewest`
  // blocks hide latencies.
  int64_t runs_of(const NoiseArgs& args, int64_t fewest) const {
    constexpr int64_t kSetUp = 4, kLong = 32;  // in turns
    const int64_t processors = blocks_wanted() / 16, tiles_of_all = args.images * tiles.value();
    const int64_t longest = kLong * rows < kThreads ? kLong * rows : kThreads;
    const int64_t least = ceil_div(args.samples, longest), most = ceil_div(args.samples, rows);
    const auto cost = [&](int64_t count) {
      const int64_t turns = ceil_div(args.samples, count * rows);
      return ceil_div(tiles_of_all * count, processors) * (turns + kSetUp);
    };
    int64_t best = least;
    for (int64_t blocks = fewest; blocks <= 8; ++blocks) {
      const int64_t count = blocks * processors / tiles_of_all;
      if (count > least && count <= most && cost(count) < cost(best)) best = count;
    }
    return best;
  }
};

// What of one thread's elements does not depend on the sample, as in Epilogue on the CPU: base and
// scale of an affine distribution; x, gain and shift of the others.
template <class T, Distribution kDistribution, int kElements>
struct Epilogues {
  static constexpr int kThreads = NoiseGrid::kThreads;
  static constexpr bool kShifted = !is_affine(kDistribution);
  T base[kElements][kThreads], scale[kElements][kThreads];
  T shift[kShifted ? kElements : 1][kThreads];
  T read[NoiseGrid::kSources][4][kThreads];
  int64_t places[kElements == 4 ? 4 : 1][kThreads];  // of the outputs, where they are scattered

  // Of the quad at element e; each thread fills its own slots, from `j` on.
  __device__ void load(const NoiseArgs& args, const NoiseGrid& grid, int64_t image, int64_t e,
                       int j) {
    load_quads(grid.sources, image, e, args.elements, &read[0][0][threadIdx.x], kThreads);
    const bool normalized = args.mean.data || args.std.data;
    T gain = 0;
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      T x = read[0][i][threadIdx.x];
      const T mean = read[1][i][threadIdx.x], std = read[2][i][threadIdx.x];
      if constexpr (kShifted) {
        T offset = 0;
        ValueOf<T, kDistribution>::prepare(args, mean, std, x, gain, offset);
        shift[j + i][threadIdx.x] = offset;
      } else {
        if (i == 0 || !grid.shared_gain) {
          gain = read[3][i][threadIdx.x];
          if (normalized) gain = gain / std;
        }
        if (normalized) x = affine_base(x, mean, std);
      }
      base[j + i][threadIdx.x] = x, scale[j + i][threadIdx.x] = gain;
    }
  }
  __device__ void place(const NoiseArgs& args, int64_t e) {
    const int64_t pixels = args.elements / args.channels;
    int64_t c = e / pixels, p = e % pixels;
    RC_UNROLL
    for (int i = 0; i < 4; ++i) {
      places[i][threadIdx.x] = p * args.channels + c;
      if (++p == pixels) p = 0, ++c;
    }
  }
};

// Blocks that share a processor: as many as leave each thread the registers it needs.
template <class T, Distribution kDistribution, int kChannels>
constexpr int kNoiseBlocks =
    !is_affine(kDistribution)                  ? 4
    : kDistribution != Distribution::kGaussian ? (kChannels == 1 ? 6 : 4)
                                               : (kChannels == 1 && sizeof(T) == 4 ? 8 : 6);

// One thread's column: holds what stays the same over a run of samples in registers. T is what is
// computed in; the dtype that is written is known when it runs, and the branches are cheap.
template <class T, Distribution kDistribution, int kChannels>
class Column {
  using One = OneLane<T>;
  static constexpr int kElements = 4 * kChannels;
  using Value = ValueOf<T, kDistribution>;
  using Shared = Epilogues<T, kDistribution, kElements>;

 public:
  __device__ Column(const NoiseArgs& args, const NoiseGrid& grid, const Shared& shared,
                    int64_t image, int64_t column)
      : args_(args),
        grid_(grid),
        shared_(shared),
        image_(image),
        first_(4 * column),
        value_(Value::make(args)) {
    RC_UNROLL
    for (int j = 0; j < kElements; ++j) {
      base_[j] = shared.base[j][threadIdx.x], scale_[j] = shared.scale[j][threadIdx.x];
    }
    RC_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      counter_[c] = philox_column<Scalar>(static_cast<uint32_t>((c * grid.plane + first_) / 4));
    }
  }

  // The outputs of sample `index`, to where the column is in it, or where scattered its image.
  __device__ void write(const PhiloxRow& row, int64_t index, char* to) {
    T values[kElements];  // in memory order: element i of channel c at i * kChannels + c
    value_.start_sample(index);
    RC_UNROLL
    for (int c = 0; c < kChannels; ++c) {
      float z[4];
      if constexpr (is_lattice(kDistribution)) {
        const LatticePlace place{args_.stream.seed, image_, index, c * grid_.plane + first_};
        draw_lattice<domain_of(kDistribution), Scalar>(args_.lattice, row, counter_[c], grid_.keys,
                                                       place, z);
      } else {
        draw<kDistribution, Scalar>(row, counter_[c], grid_.keys, z);
      }
      RC_UNROLL
      for (int i = 0; i < 4; ++i) {
        values[i * kChannels + c] = result(4 * c + i, static_cast<T>(z[i]));
      }
    }
    dispatch_narrow<T>(args_.out_dtype,
                       [&](auto tag) { store(reinterpret_cast<decltype(tag)*>(to), values); });
  }

 private:
  template <class Out>
  __device__ void store(Out* out, const T (&values)[kElements]) const {
    if constexpr (kChannels == 1) {
      if (grid_.scattered) {
        RC_UNROLL
        for (int i = 0; i < 4; ++i) {
          if (first_ + i >= args_.elements) break;
          out[shared_.places[i][threadIdx.x]] = convert<Out>(values[i]);
        }
        return;
      }
    }
    auto* to = reinterpret_cast<Quad<Out>*>(out);
    RC_UNROLL
    for (int q = 0; q < kChannels; ++q) {
      Quad<Out> quad;
      RC_UNROLL
      for (int i = 0; i < 4; ++i) quad.v[i] = convert<Out>(values[4 * q + i]);
      to[q] = quad;
    }
  }

  __device__ T result(int j, T z) const {
    if constexpr (is_affine(kDistribution)) {
      return fused_multiply_add(scale_[j], z, base_[j]);
    } else {
      const T value = value_.template value<One>(base_[j], z);
      return fused_multiply_add(scale_[j], value, shared_.shift[j][threadIdx.x]);
    }
  }

  const NoiseArgs& args_;
  const NoiseGrid& grid_;
  const Shared& shared_;
  const int64_t image_, first_;
  Value value_;
  T base_[kElements], scale_[kElements];
  PhiloxColumn<Scalar> counter_[kChannels];
};

template <class T, Distribution kDistribution, int kChannels>
__global__ void __launch_bounds__(NoiseGrid::kThreads, kNoiseBlocks<T, kDistribution, kChannels>)
    noise_kernel(const __grid_constant__ NoiseArgs args, const __grid_constant__ NoiseGrid grid) {
  __shared__ PhiloxRow rows[NoiseGrid::kThreads];
  __shared__ Epilogues<T, kDistribution, 4 * kChannels> epilogues;
  // Thresholds in turn: one offset an element, the same for every image and sample.
  const bool in_turn = kDistribution == Distribution::kSplitting && args.levels > 0;
  const int64_t image0 = first_image(args.stream), sample0 = first_sample(args.stream);
  const int lane = threadIdx.x & ((1 << grid.log_columns) - 1);
  const int first_row = threadIdx.x >> grid.log_columns;

  for_units(args.images * grid.tiles.value() * grid.runs.value(), [&](int64_t unit) {
    const int64_t tiles = grid.runs.quotient(unit), run = unit - tiles * grid.runs.value();
    const int64_t image = grid.tiles.quotient(tiles), tile = tiles - image * grid.tiles.value();
    const int count = grid.samples + (run < grid.longer);
    if (static_cast<int>(threadIdx.x) < count) {
      const int64_t sample = in_turn ? 0 : sample0 + run + threadIdx.x * grid.runs.value();
      rows[threadIdx.x] = stream_row(philox_key(args.stream.seed), domain_of(kDistribution),
                                     in_turn ? 0 : image0 + image, sample);
    }
    const int64_t column = (tile << grid.log_columns) + lane;
    const bool mine = 4 * column < grid.plane;
    RC_ROLL
    for (int c = 0; mine && c < kChannels; ++c) {
      epilogues.load(args, grid, image, c * grid.plane + 4 * column, 4 * c);
    }
    if constexpr (kChannels == 1) {
      if (mine && grid.scattered) epilogues.place(args, 4 * column);
    }
    __syncthreads();
    if (mine) {
      Column<T, kDistribution, kChannels> outputs(args, grid, epilogues, image0 + image, column);
      int64_t sample = run + first_row * grid.runs.value();
      char* to = static_cast<char*>(args.out) + column * grid.column_bytes +
                 (image * args.samples + sample) * grid.sample_bytes;
      RC_ROLL
      for (int s = first_row; s < count; s += grid.rows, sample += grid.turn, to += grid.step) {
        outputs.write(rows[s], sample0 + sample, to);
      }
    }
    __syncthreads();
  });
}

template <class T, Distribution kDistribution, int kChannels>
void launch_noise(const NoiseArgs& args, bool scattered, void* stream) {
  const NoiseGrid grid(args, kChannels, scattered);
  launch(noise_kernel<T, kDistribution, kChannels>, grid.units(args), NoiseGrid::kThreads, stream,
         args, grid);
}

}  // namespace

void noise_cuda(const NoiseArgs& args, void* stream) {
  const bool whole_quads =
      args.elements / args.channels % 4 == 0 && reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
  dispatch_arithmetic(args.out_dtype, [&](auto of_arithmetic) {
    for_distribution(args.distribution, [&](auto of) {
      using T = decltype(of_arithmetic);
      // What three channels gain when they are written together, a draw on the lattice hides.
      if constexpr (std::is_same_v<T, float> && !is_lattice(of())) {
        if (whole_quads && args.channels == 3) return launch_noise<T, of(), 3>(args, false, stream);
      }
      launch_noise<T, of(), 1>(args, !(whole_quads && args.channels == 1), stream);
    });
  });
}

}  // namespace robustcore::smoothing
