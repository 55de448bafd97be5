#include "common/async_copy.h"
#include "common/cuda.h"
#include "common/dynamic_shared.h"
#include "common/math.h"
#include "common/mma.h"
#include "lipschitz/series_block.h"

namespace robustcore::lipschitz {
namespace {

using Plan = BlockPlan;
constexpr int kMost = Plan::kMaxWarps * mma::kLanes;
// A block's work on a unit: some images, or a tile of one.
template <class E>
class Block {
  using Product = std::conditional_t<std::is_same_v<E, float>, mma::Tf32, E>;
  using Pair = Pack<E, 2>;
  static constexpr int kTall = Plan::kPixels / mma::kRows;       // products of a warp's part
  static constexpr int kWide = Plan::kChannels / mma::kColumns;  // and across
  static constexpr int kDeep = Plan::kSlice / mma::kDepthBytes;
  using Sums = mma::FragmentC[kTall][kWide];

 public:
  __device__ Block(const BlockSeriesArgs& args, const Plan& plan, int64_t unit)
      : args_(args),
        plan_(plan),
        tile_(static_cast<int>(unit % plan_.tiles())),
        first_image_(unit / plan_.tiles() * plan_.images),
        region_(rectangle(plan_.shape.degree)),
        other_(plan_.images * region_.height * region_.width * plan_.pitch()) {}

  __device__ void run() {
    __syncthreads();  // nobody reads what the unit before left
    if (threadIdx.x < Plan::kZeros / 4) {
      reinterpret_cast<uint32_t*>(dynamic_shared())[threadIdx.x] = 0;
    }
    load_images();
    RC_ROLL
    for (int slice = 0; slice < Plan::kStages - 1; ++slice) fetch_slice(slice, slice);
    RC_ROLL
    for (int s = 0; s < plan_.shape.degree; ++s) step(s);
    wait_copies<0>();
  }

 private:
  // ---- Where things lie --------------------------------------------------------------------------

  // In shared memory: zeros, slices of L, two maps.
  __device__ __forceinline__ char* slices() const {
    return dynamic_shared() + Plan::kZeros;
  }
  __device__ __forceinline__ char* maps() const {
    return slices() + Plan::kStages * plan_.shape.channels * Plan::kSlicePitch;
  }
  // A pixel in a map.
  __device__ __forceinline__ int place(const Pixel& p) const {
    const int row = p.image * region_.height + p.y - region_.top;
    return (row * region_.width + p.x - region_.left) * plan_.pitch();
  }
  // A pixel in a tensor.
  __device__ __forceinline__ int64_t offset(const Pixel& p) const {
    const int64_t row = (first_image_ + p.image) * plan_.shape.height + p.y;
    return (row * plan_.shape.width + p.x) * plan_.shape.channels;
  }
  __device__ __forceinline__ bool there(const Pixel& p) const {
    return first_image_ + p.image < args_.images;
  }
  // The pixels within `reach` of the tile.
  __device__ __forceinline__ Rectangle rectangle(int reach) const {
    const int row = tile_ / plan_.columns.tiles, column = tile_ % plan_.columns.tiles;
    const int top = plan_.rows.begin(row, reach), left = plan_.columns.begin(column, reach);
    return {top, left, plan_.rows.end(row, reach) - top, plan_.columns.end(column, reach) - left};
  }
  __device__ __forceinline__ int slices_of_filter() const {
    return 9 * plan_.shape.channels * static_cast<int>(sizeof(E)) / Plan::kSlice;
  }

  // ---- What comes from global memory -------------------------------------------------------------

  // x into the first map, as part of the first slice's group.
  __device__ void load_images() {
    const Pixels pixels(region_);
    const int packs = plan_.shape.channels / kPack<E>;
    const int count = plan_.images * pixels.area.d * packs;
    const E* x = static_cast<const E*>(args_.x);
    RC_ROLL
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const Pixel p = pixels[i / packs];
      const int pack = i % packs;
      copy_async(maps() + place(p) + pack * 16, x + (there(p) ? offset(p) + pack * kPack<E> : 0),
                 there(p));
    }
  }

  // A slice of L, of all output channels, onto its way.
  __device__ void fetch_slice(int slice, int stage) {
    constexpr int kPacks = Plan::kSlice / 16;
    const int row = 9 * plan_.shape.channels * static_cast<int>(sizeof(E));
    const char* from = static_cast<const char*>(args_.filter) + slice * Plan::kSlice;
    char* to = slices() + stage * plan_.shape.channels * Plan::kSlicePitch;
    RC_ROLL
    for (int i = threadIdx.x; i < plan_.shape.channels * kPacks; i += blockDim.x) {
      const int channel = i / kPacks, pack = i % kPacks;
      copy_async(to + channel * Plan::kSlicePitch + pack * 16, from + channel * row + pack * 16);
    }
    commit_copies();
  }

  // ---- A step ------------------------------------------------------------------------------------

  // Where a lane's row of A lies in a map for each product, a multiple of 16, and in the four bits
  // below which neighbours its pixel lacks: 1 above, 2 below, 4 left, 8 right.
  struct Rows {
    int place[kTall];
  };
  __device__ __forceinline__ Rows rows_of(const Pixels& pixels, int first) const {
    const int last = plan_.images * pixels.area.d - 1;
    Rows rows;
    RC_UNROLL
    for (int m = 0; m < kTall; ++m) {
      const int i = first + m * mma::kRows + mma::row_for_a(mma::lane());
      const Pixel p = pixels[i < last ? i : last];
      rows.place[m] = (place(p) + mma::byte_for_a(mma::lane())) | (p.y == 0) |
                      (p.y == plan_.shape.height - 1) << 1 | (p.x == 0) << 2 |
                      (p.x == plan_.shape.width - 1) << 3;
    }
    return rows;
  }

  __device__ __forceinline__ void step(int s) {
    const Rectangle needed = rectangle(plan_.shape.degree - 1 - s);
    const int wide = plan_.shape.channels / Plan::kChannels;
    const int parts =
        (plan_.images * needed.height * needed.width + Plan::kPixels - 1) / Plan::kPixels * wide;
    const int warp = threadIdx.x / mma::kLanes, warps = blockDim.x / mma::kLanes;
    for (int begin = 0; begin < parts; begin += warps) {
      const bool busy = begin + warp < parts;
      const int part = busy ? begin + warp : 0;
      const int first = part / wide * Plan::kPixels, channel = part % wide * Plan::kChannels;
      Sums sums = {};
      multiply(rows_of(Pixels(needed), first), channel, busy, sums);
      if (busy) finish(s, first, channel, sums);
    }
    const int computed = other_;
    other_ = current_, current_ = computed;
  }

  // Where a product is in a row of L: a neighbour's channels after another's.
  struct Depth {
    int down, right, byte;
  };

  // A warp's part of L times the current map.
  __device__ __forceinline__ void multiply(const Rows& rows, int channel, bool busy, Sums& sums) {
    const int slices = slices_of_filter();
    Depth depth{-1, -1, 0};
    RC_ROLL
    for (int slice = 0; slice < slices; ++slice) {
      wait_copies<Plan::kStages - 2>();
      __syncthreads();  // this slice is there, and the one before the next to come is read
      const int next = slice + Plan::kStages - 1;
      fetch_slice(next < slices ? next : next - slices,
                  stage_ == 0 ? Plan::kStages - 1 : stage_ - 1);
      if (busy) add_slice(rows, channel, depth, sums);
      stage_ = stage_ + 1 == Plan::kStages ? 0 : stage_ + 1;
    }
  }

  __device__ __forceinline__ void add_slice(const Rows& rows, int channel, Depth& depth,
                                            Sums& sums) {
    const int column = stage_ * plan_.shape.channels + channel + mma::column_for_b(mma::lane());
    const char* filter = slices() + column * Plan::kSlicePitch + mma::byte_for_b(mma::lane());
    RC_ROLL
    for (int j = 0; j < kDeep; ++j) {
      const int move =
          current_ + (depth.down * region_.width + depth.right) * plan_.pitch() + depth.byte;
      const int beyond = (depth.down < 0   ? 1
                          : depth.down > 0 ? 2
                                           : 0) |
                         (depth.right < 0   ? 4
                          : depth.right > 0 ? 8
                                            : 0);
      mma::FragmentB<E> raw[kWide];
      RC_UNROLL
      for (int n = 0; n < kWide; n += 2) {
        mma::PairB<E> pair;
        mma::load_b(pair, filter + n * mma::kColumns * Plan::kSlicePitch + j * mma::kDepthBytes);
        raw[n] = pair.b[0], raw[n + 1] = pair.b[1];
      }
      const auto row = [&](int m) {
        mma::FragmentA<E> a;
        const int at = rows.place[m];
        mma::load_a(a, at & beyond ? dynamic_shared() : maps() + (at & ~15) + move);
        return a;
      };
      if constexpr (std::is_same_v<E, float>) {
        mma::Split<mma::FragmentB<Product>> b[kWide];
        RC_UNROLL
        for (int n = 0; n < kWide; ++n) b[n] = mma::split(raw[n]);
        RC_UNROLL
        for (int m = 0; m < kTall; ++m) mma::multiply_add(sums[m], mma::split(row(m)), b);
      } else {
        RC_UNROLL
        for (int m = 0; m < kTall; ++m) mma::multiply_add(sums[m], row(m), raw);
      }
      depth.byte += mma::kDepthBytes;
      if (depth.byte == plan_.shape.channels * static_cast<int>(sizeof(E))) {
        depth.byte = 0;
        if (++depth.right == 2) depth.right = -1, ++depth.down;
      }
    }
  }

  // out[s] of a warp's part: into the map that held out[s - 2], and to where it is wanted.
  __device__ __forceinline__ void finish(int s, int first, int channel, Sums& sums) {
    const Pixels pixels(rectangle(plan_.shape.degree - 1 - s));
    const int count = plan_.images * pixels.area.d;
    RC_ROLL  // loops that move the sums down take an eighth of the code of one that is unrolled
        for (int i = first + mma::lane() / 4; i - first < Plan::kPixels; i += mma::kRows) {
      RC_ROLL
      for (int half = 0; half < 2; ++half) {
        if (i + half * 8 >= count) continue;
        float v[2 * kWide];
        RC_UNROLL
        for (int n = 0; n < 2 * kWide; ++n) {
          const float (&four)[4] = sums[0][n / 2].v;
          v[n] = half ? four[2 + n % 2] : four[n % 2];
        }
        finish_pixel(pixels[i + half * 8], s, channel + mma::column_of(mma::lane(), 0), v);
      }
      RC_UNROLL
      for (int m = 1; m < kTall; ++m) {
        RC_UNROLL
        for (int n = 0; n < kWide; ++n) sums[m - 1][n] = sums[m][n];
      }
    }
  }

  // A lane's channels of a pixel: two of each product.
  __device__ __forceinline__ void finish_pixel(const Pixel& p, int s, int channel,
                                               float (&v)[2 * kWide]) {
    const bool last = s + 1 == plan_.shape.degree, mine = there(p) && rectangle(0).has(p.y, p.x);
    const float alpha = args_.alpha[s], beta = args_.beta[s], gamma = args_.gamma[s];
    const int64_t at = offset(p) + channel;
    Pair* map =
        reinterpret_cast<Pair*>(maps() + other_ + place(p) + channel * static_cast<int>(sizeof(E)));
    Pair out[kWide], x[kWide] = {}, before[kWide] = {};
    constexpr int kApart = mma::kColumns / 2;  // pairs
    const auto read = [](Pair(&to)[kWide], const void* from) {
      RC_UNROLL
      for (int n = 0; n < kWide; ++n) to[n] = static_cast<const Pair*>(from)[n * kApart];
    };
    const auto write = [](void* to, const Pair(&from)[kWide]) {
      RC_UNROLL
      for (int n = 0; n < kWide; ++n) static_cast<Pair*>(to)[n * kApart] = from[n];
    };
    const bool sum_begins = args_.summed && s == 0;
    if ((beta != 0 || sum_begins) && there(p)) read(x, static_cast<const E*>(args_.x) + at);
    if (gamma != 0) read(before, map);
    RC_UNROLL
    for (int n = 0; n < 2 * kWide; ++n) {
      v[n] = alpha * v[n];
      v[n] = fused_multiply_add(beta, convert<float>(x[n / 2].v[n % 2]), v[n]);
      v[n] = fused_multiply_add(gamma, convert<float>(before[n / 2].v[n % 2]), v[n]);
      out[n / 2].v[n % 2] = convert<E>(v[n]);
    }
    if (!last) write(map, out);
    if (!mine) return;
    if (!last && args_.maps) {
      write(static_cast<E*>(args_.maps) + s * args_.map_step + at, out);
    }
    E* y = static_cast<E*>(args_.y) + at;
    if (args_.summed) {
      const float scale = sum_begins ? args_.delta[0] : 1.0f, delta = args_.delta[s + 1];
      if (!sum_begins) read(x, y);
      RC_UNROLL
      for (int n = 0; n < 2 * kWide; ++n) {
        const float sum = scale * convert<float>(x[n / 2].v[n % 2]);
        out[n / 2].v[n % 2] = convert<E>(fused_multiply_add(delta, v[n], sum));
      }
    }
    if (args_.summed || last) write(y, out);
  }

  const BlockSeriesArgs& args_;
  const Plan& plan_;
  int tile_;
  int64_t first_image_;
  Rectangle region_;
  int current_ = 0, other_;  // maps, from maps() on
  int stage_ = 0;            // of the slice that is multiplied
};

int64_t units_of(const BlockSeriesArgs& args, const Plan& plan) {
  return ceil_div(args.images, plan.images) * plan.tiles();
}

template <class E>
__global__ void __launch_bounds__(kMost)
    series_block_kernel(const __grid_constant__ BlockSeriesArgs args,
                        const __grid_constant__ Plan plan, int64_t units) {
#if defined(RC_CUDA_SHIM) || !defined(__CUDA_ARCH__) || \
    __CUDA_ARCH__ >= 800  // before, there are no such products
  for_units(units, [&](int64_t unit) { Block<E>(args, plan, unit).run(); });
#endif
}

}  // namespace

void series_block_cuda_as(const BlockSeriesArgs& args, const BlockPlan& plan, void* stream) {
  const auto start = [&](auto kernel) {
    launch_shared(kernel, units_of(args, plan), plan.warps() * mma::kLanes, plan.shared(), stream,
                  args, plan, units_of(args, plan));
  };
  if (args.dtype == DType::kBFloat16) return start(series_block_kernel<BFloat16>);
  start(series_block_kernel<float>);
}

bool series_block_fits_cuda(const BlockShape& shape, int device) {
  return block_plan(shape, shared_limit(device), 1, 1).images > 0;
}

void series_block_cuda(const BlockSeriesArgs& args, void* stream) {
  int device = 0, processors = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const BlockPlan plan = block_plan(args.shape, shared_limit(device), args.images, processors);
  if (plan.images == 0) {
    throw std::runtime_error("robustcore: conv_exp_block: the maps do not fit this GPU");
  }
  series_block_cuda_as(args, plan, stream);
}

}  // namespace robustcore::lipschitz
