#include "density/linear_logsumexp.h"
#include "density/linear_tiles.h"

// What runs these kernels, 8.0 to 9.0: older GPUs have no such products, and for newer ones, that
// have faster instructions of their own, the wheel has no room.
#if !defined(__CUDA_ARCH__) || (__CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000)
#define RC_SWEEP 1
#endif

namespace robustcore::density {
namespace {

// What the threads of a block tell one another of a tile, beside its weights: 3 KiB, which with
// these are all that a block of an 8.6 or 8.9 may have.
union Numbers {
  struct {
    float of_warp[kWarpsAcross][kSide];  // a row's sum, or its maximum
    float peak[kSide], factor[kSide];    // of kOnline: the maximum so far; what sums shrink by
  };
  struct {
    float down[kSide], across[kSide];  // shifts of left and right
    float scale[kSide];                // of the rows, whichever side they are
    int target[kSide];                 // where the row's class is in the tile, or -1
    float grad_target[kSide];
  };
};

// A block's way along right, for one tile of left. Thread t keeps row t's state.
template <class E>
class Sweep {
 public:
  __device__ Sweep(const SweepArgs& args, Numbers& numbers)
      : args_(args), shared_(dynamic_shared()), numbers_(numbers) {
    const unsigned tiles = tiles_of(args.left);
    left_ = static_cast<int>(blockIdx.x % tiles) * kSide;
    split_ = static_cast<int>(blockIdx.x / tiles);
    if (!has_row()) return;
    *of_row(args.sums) = 0;
    if (online()) numbers.peak[threadIdx.x] = -INFINITY;
  }

  __device__ void run() {
    const int64_t tiles = tiles_of(args_.right);
    const int end = static_cast<int>((split_ + 1) * tiles / args_.splits) * kSide;
    const int turns = args_.weights == SweepWeights::kCurvature ? 2 : 1;
    right_ = static_cast<int>(split_ * tiles / args_.splits) * kSide;
    RC_ROLL
    for (; right_ < end; right_ += kSide) {
      RC_ROLL
      for (int turn = 0; turn < turns; ++turn) {
        multiply_sides(turn > 0);
        tile_.find_place();
        turn > 0 ? bend() : weigh();
        if (turn + 1 < turns || args_.value) tile_.template store<E>(shared_, online());
      }
      if (online() || args_.row_sums) add_to_sum();
      if (args_.value) multiply_value();
    }
    if (online() && has_row()) *of_row(args_.max) = numbers_.peak[threadIdx.x];
  }

 private:
  static __device__ float number_at(const float* numbers, int64_t i, bool there) {
    return numbers && there ? numbers[i] : 0.0f;
  }
  static __device__ int tiles_of(const SweepSide& side) {
    return static_cast<int>(ceil_div(side.count, kSide));
  }
  // Whether thread t has a row t, and its place in a vector of them.
  __device__ bool has_row() const {
    return threadIdx.x < kSide && static_cast<int>(threadIdx.x) < rows();
  }
  __device__ float* of_row(float* numbers) const {
    return numbers + split_ * args_.left.count + left_ + threadIdx.x;
  }
  // Of the tile, what is there; kSide and more where all is.
  __device__ int rows() const {
    return static_cast<int>(args_.left.count) - left_;
  }
  __device__ int columns() const {
    return static_cast<int>(args_.right.count) - right_;
  }
  __device__ bool online() const {
    return args_.weights == SweepWeights::kOnline;
  }

  // The logits, or their derivative along the cotangents: left right^T, or left.along right^T +
  // left right.along^T, of which one may be missing.
  __device__ void multiply_sides(bool along) {
    const SweepSide &left = args_.left, &right = args_.right;
    const int64_t pitch = args_.width * sizeof(E);
    const int of_width = static_cast<int>(ceil_div(pitch, kSliceBytes));
    const int first_pair = !along || left.along ? of_width : 0;
    const int second_pair = along && right.along ? of_width : 0;
    tile_.find_place();
    tile_.clear();
    // The weights of before lie where the logits' pipeline was.
    pipeline(
        along ? shared_ + kTileBytes : shared_, along ? 2 : 4, 2 * kHalfStage,
        first_pair + second_pair,
        [&](int s, char* stage) {
          const bool second = s >= first_pair;
          const int64_t byte = int64_t{kSliceBytes} * (second ? s - first_pair : s);
          const void* const down = along && !second ? left.along : left.data;
          const void* const across = second ? right.along : right.data;
          load_slice(stage, static_cast<const char*>(down) + left_ * pitch + byte, rows(), pitch,
                     pitch - byte);
          load_slice(stage + kHalfStage, static_cast<const char*>(across) + right_ * pitch + byte,
                     columns(), pitch, pitch - byte);
        },
        [&](int, const char* stage) {
          tile_.template multiply_slices<E>(stage, stage + kHalfStage);
        });
  }

  // Logits to weights: scale exp(z - shifts), or exp(z - shift - the maximum so far).
  __device__ void weigh() {
    read_numbers();
    float across[kAcross][2], down[kMyRows], scale[kMyRows];
    const bool classes_left = args_.classes_left;
    for_columns([&](int n, int e, int column) { across[n][e] = numbers_.across[column]; });
    if (online()) find_peaks(across);
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      const int row = tile_.row(r);
      down[r] = online() ? shift_of(numbers_.peak[row]) : numbers_.down[row];
      scale[r] = classes_left || online() ? 1.0f : numbers_.scale[row];
    }
    for_columns([&](int n, int e, int column) {
      const float factor = classes_left ? numbers_.scale[column] : 1.0f;
      RC_UNROLL
      for (int r = 0; r < kMyRows; ++r) {
        float& z = tile_.at(r, n, e);
        z = scale[r] * factor * fast_exp(z - across[n][e] - down[r]);
      }
    });
    if (args_.targets) add_targets();
  }

  // The targets' own gradients: an element is one's where its row and its column are one class.
  __device__ void add_targets() {
    const bool classes_left = args_.classes_left;
    int down[kMyRows];
    float grad[kMyRows];
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      down[r] = classes_left ? tile_.row(r) : numbers_.target[tile_.row(r)];
      grad[r] = classes_left ? 0.0f : numbers_.grad_target[tile_.row(r)];
    }
    for_columns([&](int n, int e, int column) {
      const int across = classes_left ? numbers_.target[column] : column;
      const float mine = classes_left ? numbers_.grad_target[column] : 0.0f;
      RC_UNROLL
      for (int r = 0; r < kMyRows; ++r) {
        if (down[r] == across) tile_.at(r, n, e) += grad[r] + mine;
      }
    });
  }

  // The rows' maxima up to this tile, and by what sums of before shrink.
  __device__ void find_peaks(const float (&across)[kAcross][2]) {
    float top[kMyRows];
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      top[r] = -INFINITY;
      for_columns([&](int n, int e, int) {
        top[r] = ::fmaxf(top[r], tile_.at(r, n, e) - across[n][e]);  // a NaN shows in the sum
      });
    }
    __syncthreads();  // the numbers of the tile have been read
    to_all_warps<false>(top);
    if (has_row()) {
      const float before = numbers_.peak[threadIdx.x];
      float peak = before;
      RC_UNROLL
      for (int w = 0; w < kWarpsAcross; ++w) {
        peak = ::fmaxf(peak, numbers_.of_warp[w][threadIdx.x]);
      }
      numbers_.peak[threadIdx.x] = peak;
      numbers_.factor[threadIdx.x] = fast_exp(before - shift_of(peak));
    }
    __syncthreads();
  }

  // Of the sides' rows in this tile, each by one thread.
  __device__ void read_numbers() {
    const bool down = threadIdx.x < kSide;
    const SweepSide& side = down ? args_.left : args_.right;
    const int i = threadIdx.x % kSide;
    const int64_t at = (down ? left_ : right_) + i;
    const bool there = at < side.count;
    // What is not there weighs nothing.
    float* const shifts = down ? numbers_.down : numbers_.across;
    shifts[i] = there ? number_at(side.shift, at, true) : INFINITY;
    if (down != args_.classes_left) {  // rows
      const int64_t first = args_.classes_left ? args_.first_class + left_ : right_;
      const int classes = args_.classes_left ? rows() : columns();
      const int64_t target = args_.targets && there ? args_.targets[at] - first : -1;
      numbers_.scale[i] = args_.scale ? number_at(args_.scale, at, there) : 1.0f;
      numbers_.target[i] = target >= 0 && target < classes ? static_cast<int>(target) : -1;
      numbers_.grad_target[i] = number_at(args_.grad_target, at, there);
    }
    __syncthreads();
  }

  // The logits' derivative u to stored weight (u - along_shifts).
  __device__ void bend() {
    const bool down = threadIdx.x < kSide;
    const SweepSide& side = down ? args_.left : args_.right;
    const int64_t at = (down ? left_ : right_) + threadIdx.x % kSide;
    float* const shifts = down ? numbers_.down : numbers_.across;
    shifts[threadIdx.x % kSide] = number_at(side.along_shift, at, at < side.count);
    __syncthreads();
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      const float shift = numbers_.down[tile_.row(r)];
      RC_UNROLL
      for (int n = 0; n < kAcross; ++n) {
        const Pack<float, 2> weights = tile_.template stored<E>(shared_, r, n);
        RC_UNROLL
        for (int e = 0; e < 2; ++e) {
          float& u = tile_.at(r, n, e);
          u = weights.v[e] * (u - shift - numbers_.across[tile_.column(n, e)]);
        }
      }
    }
  }

  // The tile's weights, to the sums of its rows.
  __device__ void add_to_sum() {
    float sum[kMyRows];
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      sum[r] = 0;
      RC_UNROLL
      for (int n = 0; n < kAcross; ++n) sum[r] += tile_.at(r, n, 0) + tile_.at(r, n, 1);
    }
    __syncthreads();  // the numbers of the tile have been read
    to_all_warps<true>(sum);
    if (has_row()) {  // kept in global memory, where it takes no register
      float total = *of_row(args_.sums);
      if (online()) total *= numbers_.factor[threadIdx.x];
      RC_UNROLL
      for (int w = 0; w < kWarpsAcross; ++w) total += numbers_.of_warp[w][threadIdx.x];
      *of_row(args_.sums) = total;
    }
    __syncthreads();
  }

  // What a warp's lanes have of a row as one number, its sum or maximum, for other warps to read.
  template <bool kSum>
  __device__ void to_all_warps(float (&of_row)[kMyRows]) {
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      RC_UNROLL
      for (int step = 1; step < 4; step *= 2) {
        const float other = __shfl_xor_sync(0xFFFFFFFFu, of_row[r], step);
        of_row[r] = kSum ? of_row[r] + other : ::fmaxf(of_row[r], other);
      }
      if (tile_.lane % 4 == 0) {
        numbers_.of_warp[tile_.warp_column / kWarpColumns][tile_.row(r)] = of_row[r];
      }
    }
    __syncthreads();
  }

  // Adds weights value to the parts, kSide of their columns at a time.
  __device__ void multiply_value() {
    constexpr int kSlices = kSide / kValueRows<E>;
    tile_.find_place();
    const int64_t pitch = args_.width * sizeof(E);
    pipeline(
        shared_ + kTileBytes, 4, kHalfStage,
        static_cast<int>(ceil_div(args_.width, kSide)) * kSlices,
        [&](int s, char* stage) {
          const int row = s % kSlices * kValueRows<E>;
          const int64_t byte = int64_t{s / kSlices} * kSide * sizeof(E);
          load_values<E>(stage,
                         static_cast<const char*>(args_.value) + (right_ + row) * pitch + byte,
                         columns() - row, pitch, pitch - byte);
        },
        [&](int s, const char* stage) {
          const int step = s % kSlices;
          if (step == 0) tile_.clear();
          tile_.template multiply_values<E>(shared_, online(), step * kValueRows<E>, stage);
          if (step == kSlices - 1) add_to_parts(int64_t{s / kSlices} * kSide);
        });
  }

  // Whole tiles, of which parts have room.
  __device__ void add_to_parts(int64_t first_column) {
    using Two = Pack<float, 2>;
    const int64_t pitch = parts_pitch(args_.width);
    float* const parts = args_.parts +
                         (int64_t{split_} * tiles_of(args_.left) * kSide + left_) * pitch +
                         first_column + tile_.column(0, 0);
    RC_UNROLL
    for (int r = 0; r < kMyRows; ++r) {
      const int row = tile_.row(r);
      const float factor = online() ? numbers_.factor[row] : 1.0f;
      Two* const to = reinterpret_cast<Two*>(parts + row * pitch);
      Two sums[kAcross];
      RC_UNROLL
      for (int n = 0; n < kAcross; ++n) sums[n] = to[n * mma::kColumns / 2];
      RC_UNROLL
      for (int n = 0; n < kAcross; ++n) {
        RC_UNROLL
        for (int e = 0; e < 2; ++e) {
          sums[n].v[e] = fused_multiply_add(sums[n].v[e], factor, tile_.at(r, n, e));
        }
        to[n * mma::kColumns / 2] = sums[n];
      }
    }
  }

  template <class Body>
  __device__ __forceinline__ void for_columns(const Body& body) {
    RC_UNROLL
    for (int n = 0; n < kAcross; ++n) {
      RC_UNROLL
      for (int e = 0; e < 2; ++e) body(n, e, tile_.column(n, e));
    }
  }

  const SweepArgs& args_;
  char* const shared_;  // weights, and the ring of their pipeline
  Numbers& numbers_;
  int left_, right_ = 0, split_;  // first rows of the tile
  Tile tile_;
};

template <class E>
__global__ void __launch_bounds__(kThreads, 2)
    sweep_kernel(const __grid_constant__ SweepArgs args) {
#if defined(RC_SWEEP)
  __shared__ Numbers numbers;
  Sweep<E>(args, numbers).run();
#endif
}

// The splits of a row as one, in their order.
__global__ void __launch_bounds__(kThreads) merge_kernel(const __grid_constant__ SweepArgs args) {
#if defined(RC_SWEEP)
  using L = OneLane<float>;
  const bool online = args.weights == SweepWeights::kOnline;
  const int64_t rows = args.left.count, pitch = parts_pitch(args.width);
  for_units(rows, [&](int64_t row) {
    Scaled<float> total{-INFINITY, 0};
    float sum = 0;
    RC_ROLL
    for (int64_t s = 0; s < args.splits; ++s) {
      const float part = args.sums[s * rows + row];
      if (online) total = add_exp<L>(total, {args.max[s * rows + row], part});
      sum += part;
    }
    if (threadIdx.x == 0) {
      if (online) args.lse[row] = lse_of<L>(total);
      if (args.row_sums) args.row_sums[row] = sum;
    }
    if (!args.value) return;
    const float shift = shift_of(total.max);
    const float inverse = total.sum == 0 ? 0.0f : 1 / total.sum;  // no class is possible: 0
    RC_ROLL
    for (int64_t d = threadIdx.x; d < args.width; d += kThreads) {
      float value = 0;
      RC_ROLL
      for (int64_t s = 0; s < args.splits; ++s) {
        const float factor = online ? exp<L>(args.max[s * rows + row] - shift) * inverse : 1.0f;
        value += factor * args.parts[(s * ceil_div(rows, kSide) * kSide + row) * pitch + d];
      }
      dispatch_narrow<float>(args.out_dtype, [&](auto tag) {
        using Out = decltype(tag);
        Out& to = static_cast<Out*>(args.out)[row * args.width + d];
        to = convert<Out>(args.add ? value + to_float(to) : value);
      });
    }
  });
#endif
}

}  // namespace

void linear_sweep_cuda(const SweepArgs& args, void* stream) {
  const int64_t units = ceil_div(args.left.count, kSide) * args.splits;
  if (units == 0) return;
  const bool along = args.weights == SweepWeights::kCurvature;
  const int64_t bytes = kTileBytes + (args.value || along ? kRingBytes : 0);
  if (args.value) {
    const int64_t parts = units * kSide * parts_pitch(args.width);
    check_cuda(
        cudaMemsetAsync(args.parts, 0, parts * sizeof(float), static_cast<cudaStream_t>(stream)));
  }
  launch_shared(args.dtype == DType::kFloat32 ? sweep_kernel<float> : sweep_kernel<BFloat16>, units,
                kThreads, bytes, stream, args);
  launch(merge_kernel, args.left.count, kThreads, stream, args);
}

}  // namespace robustcore::density
