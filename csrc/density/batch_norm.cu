// Backward and double backward in float32: a launch that sums, and one that writes. Runs of a unit
// are independent of one another until their float32 sums join in float64, so threads take a run
// each, in four accumulators or four channels that lie side by side.
#include "density/batch_norm_cuda.h"

namespace robustcore::density {
namespace {

// ---- Channels one after another ------------------------------------------------------------------

// The runs of a unit, as the CPU's sums flush their accumulators: after kImagesRun images of small
// planes; else after the segment that brings them to kSegment elements.
struct Runs {
  bool small;
  int64_t images, plane, segments, rest, images_run, rows_image;

  __device__ Runs(const BatchNormArgs& args, bool small_, int64_t images_)
      : small(small_),
        images(images_),
        plane(args.plane),
        segments(plane / kSegment),
        rest(plane % kSegment),
        images_run(small ? BatchNormArgs::kImagesRun : ceil_div(kSegment, plane)),
        rows_image(ceil_div(plane, kSums)) {}

  __device__ int64_t count() const {
    return segments == 0 ? ceil_div(images, images_run) : images * segments + (rest > 0);
  }

  // Run j: `rows` rows of up to kSums elements, from element `from` of `image` on.
  struct Run {
    int64_t image, from;
    int rows;
  };
  __device__ Run run(int64_t j) const {
    if (j >= count()) return {0, 0, 0};
    if (segments == 0) {
      const int64_t image = j * images_run, left = images - image;
      return {image, 0, static_cast<int>((left < images_run ? left : images_run) * rows_image)};
    }
    constexpr int kRows = kSegment / kSums;
    const int64_t image = j / segments, segment = j - image * segments;
    const int rest_rows = static_cast<int>(ceil_div(rest, kSums));
    if (segment > 0 || image == 0 || rest == 0) return {image, segment * kSegment, kRows};
    // The end of the image before, and the first segment of this one, if there is one.
    return {image - 1, segments * kSegment, rest_rows + (image < images ? kRows : 0)};
  }
};

// kSums / 4 threads take a run.
constexpr int kRunThreads = kSums / 4, kRuns = kThreads / kRunThreads;

// This thread's accumulators of a run: four, of elements `quad` * 4 on of each row. `base` is where
// the plane of image 0 of the unit begins.
template <Pass kPass>
__device__ void sum_run(const BatchNormArgs& args, bool wide, const Runs::Run& run, int64_t base,
                        float mean, int quad, Four (&sums)[sums_of(kPass)]) {
  const int64_t step = args.channels * args.plane;
  int64_t image = base + run.image * step, from = run.from;
  RC_ROLL
  for (int row = 0; row < run.rows; row += kAhead) {
    Batch<kPass> batch;
    RC_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      batch.at[i] = image + from + quad * 4;
      batch.n[i] = row + i < run.rows ? four_of(args.plane - from - quad * 4) : 0;
      from += kSums;
      if (from >= args.plane) from = 0, image += step;
    }
    batch.read(args, wide);
    batch.add([&](int) { return mean; }, sums);
  }
}

// A block sums a unit; warp q joins the runs' sums q, a lane an accumulator.
template <Pass kPass>
__global__ void __launch_bounds__(kThreads, 2)
    sum_planes_kernel(const __grid_constant__ BatchNormArgs args, Plan plan) {
  constexpr int kCount = sums_of(kPass);
  __shared__ Four parts[kRuns][kCount][kRunThreads];
  const int at_once = blockDim.x / kRunThreads, lane = threadIdx.x % kWarp;
  const int own = threadIdx.x / kRunThreads, quad = threadIdx.x % kRunThreads;
  const int q = threadIdx.x / kWarp;
  const int64_t chunks = plan.chunks, step = plan.images_per_unit;
  for_units(plan.units, [&](int64_t unit) {
    const int64_t channel = unit / chunks, first = (unit - channel * chunks) * step;
    const Runs runs(args, plan.small, args.images - first < step ? args.images - first : step);
    const int64_t base = (first * args.channels + channel) * args.plane, count = runs.count();
    const float mean = static_cast<const float*>(args.mean)[channel];
    double total = 0;
    RC_ROLL
    for (int64_t wave = 0; wave < count; wave += at_once) {
      Four sums[kCount] = {};
      sum_run<kPass>(args, plan.wide, runs.run(wave + own), base, mean, quad, sums);
      RC_UNROLL
      for (int k = 0; k < kCount; ++k) parts[own][k][quad] = sums[k];
      __syncthreads();
      for (int i = 0; q < kCount && i < at_once && wave + i < count; ++i) {
        const float part = (&parts[i][q][0].v[0])[lane];
        total += runs.small ? warp_sum(part) : part;
      }
      __syncthreads();
    }
    if (q >= kCount) return;
    if (!runs.small) total = warp_sum(total);
    if (lane == 0) args.sums[unit * BatchNormArgs::kMostSums + q] = total;
  });
}

template <Pass kPass>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ BatchNormArgs args, int64_t chunks) {
  for_items(args.channels, [&](int64_t c) {
    batch_norm_finish<float, kPass>(args, chunks, c, true, [&](int k, double factor) {
      static_cast<float*>(args.factors)[k * args.channels + c] = static_cast<float>(factor);
    });
  });
}

constexpr int kPiece = kThreads * kWriteAhead;  // quads of a channel that a block writes

RC_HOST_DEVICE int64_t pieces_of(const BatchNormArgs& args) {
  return ceil_div(args.images * ceil_div(args.plane, 4), kPiece);
}

template <Pass kPass>
__global__ void __launch_bounds__(kThreads, 2)
    write_planes_kernel(const __grid_constant__ BatchNormArgs args, Plan plan) {
  __shared__ float factors[factors_of(kPass)];
  const int64_t pieces = pieces_of(args);
  const uint32_t quads = static_cast<uint32_t>(ceil_div(args.plane, 4));
  for_units(args.channels * pieces, [&](int64_t unit) {
    const int64_t channel = unit / pieces, piece = unit - channel * pieces;
    if (threadIdx.x == 0) {
      get_factors<kPass>(args, plan.chunks, channel, piece == 0,
                         [&](int k, double f) { factors[k] = static_cast<float>(f); });
    }
    __syncthreads();
    const float mean = static_cast<const float*>(args.mean)[channel];
    const int64_t first = piece * kPiece, image = first / quads;
    const uint32_t begin = static_cast<uint32_t>(first - image * quads);
    Batch<kPass, kWriteAhead> batch;
    RC_UNROLL
    for (int i = 0; i < kWriteAhead; ++i) {
      const uint32_t at = begin + threadIdx.x + i * kThreads, over = at / quads;
      const int64_t plane = (image + over) * args.channels + channel, e = (at - over * quads) * 4;
      batch.at[i] = plane * args.plane + e;
      batch.n[i] = image + over < args.images ? four_of(args.plane - e) : 0;
    }
    batch.read(args, plan.wide);
    batch.write(args, plan.wide, [&](int) { return mean; }, [&](int k, int) { return factors[k]; });
    __syncthreads();
  });
}

// ---- Channels last -------------------------------------------------------------------------------

// Threads take four channels each; a block takes a tile of them.
constexpr int kRowThreads = 128, kTileQuads = 32;

struct Tiles {
  int64_t quads, count;
  unsigned wide;  // quads of a tile

  RC_HOST_DEVICE explicit Tiles(const BatchNormArgs& args)
      : quads(ceil_div(args.channels, 4)),
        count(ceil_div(quads, kTileQuads)),
        wide(static_cast<unsigned>(ceil_div(quads, count))) {}
};

// The mean of each of four channels from c on; 0 past the end.
__device__ Four means_at(const BatchNormArgs& args, int64_t c) {
  return read_four(args.mean, c, four_of(args.channels - c), false);
}

// A block sums a unit of a tile; kRowWays threads take a run of four channels.
template <Pass kPass>
__global__ void __launch_bounds__(kRowThreads, 4)
    sum_rows_kernel(const __grid_constant__ BatchNormArgs args, Plan plan) {
  constexpr int kCount = sums_of(kPass), kWays = BatchNormArgs::kRowWays;
  constexpr int64_t kRun = BatchNormArgs::kRowRun;
  __shared__ Four parts[kCount][kRowThreads];
  const Tiles tiles(args);
  const int column = threadIdx.x % tiles.wide, row = threadIdx.x / tiles.wide;
  const int own = row / kWays, way = row % kWays, at_once = kRowThreads / (kWays * tiles.wide);
  const int64_t step = plan.images_per_unit;
  for_units(plan.units * tiles.count, [&](int64_t block) {
    const int64_t unit = block / tiles.count, tile = (block - unit * tiles.count) * tiles.wide;
    const int64_t c = (tile + column) * 4, first = unit * step;
    const int64_t last = first + step < args.images ? first + step : args.images;
    const Four means = means_at(args, c);
    const int64_t channel = tile * 4 + threadIdx.x;
    const bool joins = threadIdx.x < tiles.wide * 4 && channel < args.channels;
    double total[kCount] = {};  // of that channel
    RC_ROLL
    for (int64_t wave = first; wave < last; wave += at_once * kRun) {
      Four sums[kCount] = {};
      const int64_t begin = wave + own * kRun, end = begin + kRun < last ? begin + kRun : last;
      RC_ROLL
      for (int64_t r = begin + way; own < at_once && r < end; r += kWays * kAhead) {
        Batch<kPass> batch;
        RC_UNROLL
        for (int i = 0; i < kAhead; ++i) {
          batch.at[i] = (r + i * kWays) * args.channels + c;
          batch.n[i] = r + i * kWays < end ? four_of(args.channels - c) : 0;
        }
        batch.read(args, plan.wide);
        batch.add([&](int j) { return means.v[j]; }, sums);
      }
      RC_UNROLL
      for (int k = 0; k < kCount; ++k) parts[k][threadIdx.x] = sums[k];
      __syncthreads();
      for (int i = 0; joins && i < at_once && wave + i * kRun < last; ++i) {
        RC_UNROLL
        for (int k = 0; k < kCount; ++k) {
          const auto part = [&](int w) {
            return (&parts[k][(i * kWays + w) * tiles.wide].v[0])[threadIdx.x];
          };
          total[k] += (part(0) + part(1)) + (part(2) + part(3));
        }
      }
      __syncthreads();
    }
    if (!joins) return;
    RC_UNROLL
    for (int k = 0; k < kCount; ++k) {
      args.sums[(unit * BatchNormArgs::kMostSums + k) * args.channels + channel] = total[k];
    }
  });
}

template <Pass kPass>
__global__ void __launch_bounds__(kThreads, 2)
    write_rows_kernel(const __grid_constant__ BatchNormArgs args, Plan plan, int64_t rows) {
  __shared__ Four factors[factors_of(kPass)][kTileQuads];
  const Tiles tiles(args);
  const int column = threadIdx.x % tiles.wide, at_once = kThreads / tiles.wide;
  const int row = threadIdx.x / tiles.wide;
  for_units(ceil_div(args.images, rows) * tiles.count, [&](int64_t unit) {
    const int64_t block = unit / tiles.count, tile = (unit - block * tiles.count) * tiles.wide;
    const int64_t own = tile * 4 + threadIdx.x;
    if (threadIdx.x < tiles.wide * 4 && own < args.channels) {
      get_factors<kPass>(args, plan.chunks, own, block == 0, [&](int k, double f) {
        (&factors[k][0].v[0])[threadIdx.x] = static_cast<float>(f);
      });
    }
    __syncthreads();
    const int64_t c = (tile + column) * 4, first = block * rows;
    const int64_t end = first + rows < args.images ? first + rows : args.images;
    const Four means = means_at(args, c);
    RC_ROLL
    for (int64_t r = first + row; row < at_once && r < end; r += at_once * kWriteAhead) {
      Batch<kPass, kWriteAhead> batch;
      RC_UNROLL
      for (int i = 0; i < kWriteAhead; ++i) {
        batch.at[i] = (r + i * at_once) * args.channels + c;
        batch.n[i] = r + i * at_once < end ? four_of(args.channels - c) : 0;
      }
      batch.read(args, plan.wide);
      batch.write(
          args, plan.wide, [&](int j) { return means.v[j]; },
          [&](int k, int j) { return factors[k][column].v[j]; });
    }
    __syncthreads();
  });
}

// ---- Launches ------------------------------------------------------------------------------------

template <Pass kPass>
void run_planes(const BatchNormArgs& args, const Plan& plan, void* stream) {
  // A channel of small planes has few runs.
  launch(sum_planes_kernel<kPass>, plan.units, plan.small ? kThreads / 2 : kThreads, stream, args,
         plan);
  if (plan.chunks > kFewChunks)
    launch_items(finish_kernel<kPass>, args.channels, stream, args, plan.chunks);
  launch(write_planes_kernel<kPass>, args.channels * pieces_of(args), kThreads, stream, args, plan);
}

template <Pass kPass>
void run_rows(const BatchNormArgs& args, const Plan& plan, void* stream) {
  const Tiles tiles(args);
  launch(sum_rows_kernel<kPass>, plan.units * tiles.count, kRowThreads, stream, args, plan);
  if (plan.chunks > kFewChunks)
    launch_items(finish_kernel<kPass>, args.channels, stream, args, plan.chunks);
  // Blocks enough to keep the device busy, and no more: each finishes its tile's sums anew.
  const int64_t least = kThreads / tiles.wide * kWriteAhead;
  const int64_t rows = ceil_div(args.images, ceil_div(blocks_wanted(), tiles.count));
  const int64_t of_block = rows > least ? rows : least;
  launch(write_rows_kernel<kPass>, ceil_div(args.images, of_block) * tiles.count, kThreads, stream,
         args, plan, of_block);
}

}  // namespace

void batch_norm_cuda(const BatchNormArgs& args, void* stream) {
  bool wide = (args.channels_last ? args.channels : args.plane) % 4 == 0;
  for (const void* data : {args.x, args.grad, args.v, args.more, static_cast<const void*>(args.d_x),
                           static_cast<const void*>(args.d_grad)}) {
    wide = wide && is_aligned(data);
  }
  const auto run = [&](auto pass) {
    (args.channels_last ? run_rows<pass()> : run_planes<pass()>)(args, Plan(args, wide), stream);
  };
  if (args.pass == Pass::kBackward) return run(std::integral_constant<Pass, Pass::kBackward>{});
  run(std::integral_constant<Pass, Pass::kDoubleBackward>{});
}

}  // namespace robustcore::density
