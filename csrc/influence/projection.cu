#include "common/cuda.h"
#include "influence/projection.h"

namespace robustcore::influence {
namespace {

// A block computes kTileSamples samples of kBlockOutputs outputs, a part of a unit. It steps
// through kTerms terms at a time: all threads draw that piece of P into shared memory, then each
// adds to the sums of its kSamples samples and kOutputs neighbouring outputs, which stay in
// registers.
constexpr int kTerms = 16, kBlockOutputs = 256;
constexpr int kSamples = 8, kOutputs = 4, kAcross = kBlockOutputs / kOutputs;
constexpr int kBlocksOfUnit = kTileOutputs / kBlockOutputs;
static_assert(kAcross * (kTileSamples / kSamples) == kThreads);

template <class T>
struct Shared {
  T x[kTileSamples][kTerms + 1];  // one more, or a warp's stores would meet in one bank
  alignas(16) float matrix[kTerms][kBlockOutputs];
  uint32_t words[kTerms][kBlockOutputs / 32];
};

__device__ void draw(const ProjectionArgs& args, int64_t row, int64_t block, uint32_t (&words)[4]) {
  stream_words(args.seed, args.normal ? Domain::kNormal : Domain::kRademacher, row >> 32, block,
               static_cast<uint32_t>(row), words);
}

__device__ Quad<float> draw_normals(const ProjectionArgs& args, int64_t row, int64_t block) {
  uint32_t words[4];
  draw(args, row, block, words);
  Quad<float> z;
  box_muller<Scalar>(words[0], words[1], z.v[0], z.v[1]);
  box_muller<Scalar>(words[2], words[3], z.v[2], z.v[3]);
  return z;
}

// The piece of P from a row and a column on, or of its transpose; `words` is for signs.
template <class T, bool kNormal, bool kTransposed>
__device__ void draw_matrix(const ProjectionArgs& args, int64_t row, int64_t column,
                            Shared<T>& shared) {
  const int thread = threadIdx.x;
  if constexpr (kNormal && kTransposed) {  // a thread has a row
    RC_ROLL
    for (int q = 0; q < kTerms; q += 4) {
      const Quad<float> z = draw_normals(args, row + thread, (column + q) / 4);
      RC_UNROLL
      for (int i = 0; i < 4; ++i) shared.matrix[q + i][thread] = z.v[i];
    }
  } else if constexpr (kNormal) {  // four columns of some rows
    RC_ROLL
    for (int t = thread / kAcross; t < kTerms; t += kThreads / kAcross) {
      const int l = thread % kAcross * 4;
      const Quad<float> z = draw_normals(args, row + t, (column + l) / 4);
      *reinterpret_cast<Quad<float>*>(&shared.matrix[t][l]) = z;
    }
  } else if constexpr (kTransposed) {
    uint32_t words[4];
    draw(args, row + thread, column / 128, words);
    const int w = static_cast<int>(column % 128) / 32;
    const uint32_t word = w == 0 ? words[0] : w == 1 ? words[1] : w == 2 ? words[2] : words[3];
    RC_UNROLL
    for (int t = 0; t < kTerms; ++t) {
      shared.matrix[t][thread] = sign_of<Scalar>(word << (31 - column % 32 - t));
    }
  } else {
    constexpr int kBlocks = kBlockOutputs / 128;
    if (thread < kTerms * kBlocks) {
      const int t = thread / kBlocks, b = thread % kBlocks;
      uint32_t words[4];
      draw(args, row + t, column / 128 + b, words);
      RC_UNROLL
      for (int w = 0; w < 4; ++w) shared.words[t][4 * b + w] = words[w];
    }
    __syncthreads();
    RC_UNROLL
    for (int t = 0; t < kTerms; ++t) {
      const uint32_t word = shared.words[t][thread / 32];
      shared.matrix[t][thread] = sign_of<Scalar>(word << (31 - thread % 32));
    }
  }
}

template <class T>
__device__ void load_samples(const ProjectionArgs& args, const ProjectionTile& tile, int64_t term,
                             int terms, Shared<T>& shared) {
  for (int i = threadIdx.x; i < kTileSamples * kTerms; i += kThreads) {
    const int n = i / kTerms, t = i % kTerms;
    T value = 0;
    if (n < tile.samples && t < terms) {
      value =
          load_as<T>(args.x.data, args.x.dtype,
                     (tile.sample + n) * args.x.image_stride + element_offset(args.x, term + t));
    }
    shared.x[n][t] = value;
  }
}

template <class T, bool kNormal, bool kTransposed>
__global__ void __launch_bounds__(kThreads, sizeof(T) == sizeof(double) ? 1 : 2)
    project_kernel(const __grid_constant__ ProjectionArgs args) {
  __shared__ Shared<T> shared;
  const int first_sample = static_cast<int>(threadIdx.x) / kAcross * kSamples;
  const int first_output = static_cast<int>(threadIdx.x) % kAcross * kOutputs;

  for_units(args.units() * kBlocksOfUnit, [&](int64_t block) {
    const int64_t unit = block / kBlocksOfUnit, skipped = block % kBlocksOfUnit * kBlockOutputs;
    const ProjectionTile tile = tile_of(args, unit);
    if (skipped >= tile.outputs) return;  // all threads of the block
    T sums[kSamples][kOutputs] = {};
    RC_ROLL
    for (int64_t done = 0; done < tile.terms; done += kTerms) {
      const int64_t term = tile.term + done, output = tile.output + skipped;
      const int terms = static_cast<int>(tile.terms - done < kTerms ? tile.terms - done : kTerms);
      load_samples(args, tile, term, terms, shared);
      draw_matrix<T, kNormal, kTransposed>(args, args.row_offset + (kTransposed ? output : term),
                                           kTransposed ? term : output, shared);
      __syncthreads();
      RC_ROLL
      for (int t = 0; t < terms; ++t) {
        const auto entries = *reinterpret_cast<const Quad<float>*>(&shared.matrix[t][first_output]);
        RC_UNROLL
        for (int s = 0; s < kSamples; ++s) {
          const T value = shared.x[first_sample + s][t];
          RC_UNROLL
          for (int i = 0; i < kOutputs; ++i) {
            sums[s][i] = fused_multiply_add(value, static_cast<T>(entries.v[i]), sums[s][i]);
          }
        }
      }
      __syncthreads();
    }
    const Place<T> to(args, tile, unit);
    RC_UNROLL
    for (int s = 0; s < kSamples; ++s) {
      RC_UNROLL
      for (int i = 0; i < kOutputs; ++i) {
        const int64_t output = skipped + first_output + i;
        if (first_sample + s < tile.samples && output < tile.outputs) {
          to.data[(first_sample + s) * to.stride + output] = sums[s][i];
        }
      }
    }
  });
}

// Adds the sums of a round's segments, in turn, to those of the rounds before.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const __grid_constant__ ProjectionArgs args) {
  for_items(args.tiles * kPartElements, [&](int64_t item) {
    const int64_t unit = item / kPartElements, at = item % kPartElements;
    const ProjectionTile tile = tile_of(args, unit);
    const int64_t n = at / kTileOutputs, l = at % kTileOutputs;
    if (n >= tile.samples || l >= tile.outputs) return;
    T& out = static_cast<T*>(args.out)[(tile.sample + n) * args.outputs + tile.output + l];
    T sum = args.first_segment == 0 ? T(0) : out;
    const T* part = static_cast<const T*>(args.parts) + item;
    for (int64_t s = 0; s < args.segments; ++s) sum += part[s * args.tiles * kPartElements];
    out = sum;
  });
}

template <class T, bool kNormal, bool kTransposed>
void launch_rounds(const ProjectionArgs& args, void* stream) {
  for_rounds(args, [&](const ProjectionArgs& round) {
    launch(project_kernel<T, kNormal, kTransposed>, round.units() * kBlocksOfUnit, kThreads, stream,
           round);
    if (round.parts) {
      launch_items(add_parts_kernel<T>, round.tiles * kPartElements, stream, round);
    }
  });
}

template <class T>
void project_in(const ProjectionArgs& args, void* stream) {
  if (args.normal) {
    args.transposed ? launch_rounds<T, true, true>(args, stream)
                    : launch_rounds<T, true, false>(args, stream);
  } else {
    args.transposed ? launch_rounds<T, false, true>(args, stream)
                    : launch_rounds<T, false, false>(args, stream);
  }
}

}  // namespace

void project_cuda(const ProjectionArgs& args, void* stream) {
  args.x.dtype == DType::kFloat64 ? project_in<double>(args, stream)
                                  : project_in<float>(args, stream);
}

}  // namespace robustcore::influence
