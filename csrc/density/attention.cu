#include "density/attention_block.h"

namespace robustcore::density {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    forward_kernel(const __grid_constant__ AttentionArgs args) {
  __shared__ Shared<T> shared;
  using L = OneLane<T>;
  const int64_t tiles = ceil_div(args.in.rows, kTile), width = args.in.value_dim;
  for_units(args.in.batch * args.in.heads * tiles, [&](int64_t unit) {
    Block<T> block(args.in, shared, unit / tiles, unit % tiles);
    T tile[kMine], highest = T(-INFINITY), sum = 0;
    for (int64_t c = 0; c < block.column_tiles(); ++c) {
      block.set_columns(c);
      block.scores(tile);
      block.set_weights(tile);
      block.for_each_row([&](int r) {
        RC_UNROLL_BY_4
        for (int j = 0; j < kTile; ++j) highest = L::max(highest, shared.weights[r][j]);
      });
    }
    block.for_each_row([&](int r) { shared.stats[0][r] = shift_of(highest); });
    for (int64_t c = 0; c < block.column_tiles(); ++c) {
      block.set_columns(c);
      block.probabilities(tile);
      block.set_weights(tile);
      block.for_each_row([&](int r) {
        RC_UNROLL_BY_4
        for (int j = 0; j < kTile; ++j) sum += shared.weights[r][j];
      });
      block.add_product(block.columns(args.in.v, width), block.rows(args.out, width), c > 0);
    }
    const Band<T> out = block.rows(args.out, width), lse = block.rows(args.lse, 1);
    block.for_each_row([&](int r) {
      if (r >= out.count) return;
      lse.data[r] = lse_of<L>(Scaled<T>{highest, sum});
      const T inverse = sum == T(0) ? T(0) : T(1) / sum;
      for (int64_t e = 0; e < width; ++e) out.data[r * width + e] *= inverse;
    });
  });
}

// What is subtracted from the logits, and delta, into shared memory.
template <class T, class Args>
__device__ void begin_rows(const Args& args, const Block<T>& block, Shared<T>& shared) {
  const int64_t width = args.in.value_dim;
  const Band<const T> grad = block.rows(args.grad, width), out = block.rows(args.out, width);
  const Band<const T> lse = block.rows(args.lse, 1);
  block.for_each_row([&](int r) {
    const bool there = r < lse.count;
    T delta = 0;
    for (int64_t e = 0; there && e < width; ++e) {
      delta = fused_multiply_add(grad.data[r * width + e], out.data[r * width + e], delta);
    }
    shared.stats[0][r] = there ? probability_shift(lse.data[r]) : T(0);
    shared.stats[1][r] = delta;
    shared.stats[2][r] = shared.stats[3][r] = 0;
  });
}

// Stats of rows, to global memory and from there.
template <class T>
__device__ void save_rows(const Block<T>& block, Shared<T>& shared, void* stats) {
  const Band<T> to = block.rows(stats, kStats);
  block.for_each_row([&](int r) {
    RC_UNROLL
    for (int k = 0; k < kStats && r < to.count; ++k) to.data[r * kStats + k] = shared.stats[k][r];
  });
}
template <class T>
__device__ void load_rows(const Block<T>& block, Shared<T>& shared, const void* stats) {
  const Band<const T> from = block.rows(stats, kStats);
  block.for_each_row([&](int r) {
    RC_UNROLL
    for (int k = 0; k < kStats; ++k) {
      shared.stats[k][r] = r < from.count ? from.data[r * kStats + k] : T(0);
    }
  });
}

template <class T, bool kColumns>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const __grid_constant__ AttentionBackwardArgs args) {
  __shared__ Shared<T> shared;
  using L = OneLane<T>;
  const AttentionInputs& in = args.in;
  const T scale = static_cast<T>(in.scale);
  // p is left alone, ds is scaled.
  const auto tile = [&](const Block<T>& block, T(&p)[kMine], T(&ds)[kMine]) {
    block.probabilities(p);
    block.dots(block.rows(args.grad, in.value_dim), block.columns(in.v, in.value_dim), ds);
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) {
      ds[m] = scale * score_gradient<L>(p[m], ds[m], block.stat(1, m));
    }
  };
  T p[kMine], ds[kMine];
  const int64_t row_tiles = ceil_div(in.rows, kTile), column_tiles = ceil_div(in.columns, kTile);
  const int64_t tiles = kColumns ? column_tiles : row_tiles;
  for_units(in.batch * in.heads * tiles, [&](int64_t unit) {
    Block<T> block(in, shared, unit / tiles, kColumns ? 0 : unit % tiles);
    if constexpr (!kColumns) {
      begin_rows<T>(args, block, shared);
      save_rows<T>(block, shared, args.stats);
      for (int64_t c = 0; c < block.column_tiles(); ++c) {
        block.set_columns(c);
        tile(block, p, ds);
        block.set_weights(ds);
        block.add_product(block.columns(in.k, in.dim), block.rows(args.d_q, in.dim), c > 0);
      }
    } else {
      block.set_columns(unit % tiles);
      for (int64_t r = block.first_row_tile(); r < row_tiles; ++r) {
        block.set_rows(r);
        load_rows<T>(block, shared, args.stats);
        tile(block, p, ds);
        block.set_weights(ds, true);
        block.add_product(block.rows(in.q, in.dim), block.columns(args.d_k, in.dim), true);
        block.set_weights(p, true);
        block.add_product(block.rows(args.grad, in.value_dim),
                          block.columns(args.d_v, in.value_dim), true);
      }
    }
  });
}

// P, dP, the scaled slope T, and W of a tile.
template <class T>
struct SecondTile {
  T p[kMine], dp[kMine], slope[kMine], w[kMine];

  __device__ SecondTile(const AttentionDoubleBackwardArgs& args, const Block<T>& block) {
    const AttentionInputs& in = args.in;
    const Band<const T> grad = block.rows(args.grad, in.value_dim);
    block.probabilities(p);
    block.dots(grad, block.columns(in.v, in.value_dim), dp);
    block.dots(grad, block.columns(args.v_v, in.value_dim), w);
    block.dots(block.rows(args.v_q, in.dim), block.columns(in.k, in.dim), slope);
    block.add_dots(block.rows(in.q, in.dim), block.columns(args.v_k, in.dim), slope);
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) slope[m] = static_cast<T>(in.scale) * slope[m];
  }

  // dS where dP was, H where W was, U where T was; dS and H scaled.
  __device__ void finish(const Block<T>& block, T scale) {
    using L = OneLane<T>;
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) {
      const T dt = slope[m] - block.stat(2, m), delta = block.stat(1, m), g = dp[m];
      w[m] = scale * score_curvature<L>(p[m], g, delta, dt, w[m], block.stat(3, m));
      dp[m] = scale * score_gradient<L>(p[m], g, delta);
      slope[m] = p[m] * dt;
    }
  }
};

// t and rest of the rows, from a first pass over the columns.
template <class T>
__device__ void sum_rows(const AttentionDoubleBackwardArgs& args, Block<T>& block,
                         Shared<T>& shared) {
  using L = OneLane<T>;
  T t = 0, rest = 0;
  for (int64_t c = 0; c < block.column_tiles(); ++c) {
    block.set_columns(c);
    SecondTile<T> tile(args, block);
    RC_UNROLL
    for (int m = 0; m < kMine; ++m) {
      tile.w[m] = tile.p[m] * L::fma(tile.dp[m], tile.slope[m], tile.w[m]);
      tile.slope[m] = tile.p[m] * tile.slope[m];
    }
    block.set_weights(tile.slope);
    block.for_each_row([&](int r) {
      RC_UNROLL_BY_4
      for (int j = 0; j < kTile; ++j) t += shared.weights[r][j];
    });
    block.set_weights(tile.w);
    block.for_each_row([&](int r) {
      RC_UNROLL_BY_4
      for (int j = 0; j < kTile; ++j) rest += shared.weights[r][j];
    });
  }
  block.for_each_row([&](int r) {
    shared.stats[2][r] = t;
    shared.stats[3][r] = rest - shared.stats[1][r] * t;
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    second_rows_kernel(const __grid_constant__ AttentionDoubleBackwardArgs args) {
  __shared__ Shared<T> shared;
  const AttentionInputs& in = args.in;
  const int64_t tiles = ceil_div(in.rows, kTile);
  for_units(in.batch * in.heads * tiles, [&](int64_t unit) {
    Block<T> block(in, shared, unit / tiles, unit % tiles);
    begin_rows<T>(args, block, shared);
    sum_rows<T>(args, block, shared);
    save_rows<T>(block, shared, args.stats);
    const Band<T> d_grad = block.rows(args.d_grad, in.value_dim);
    const Band<T> d_q = block.rows(args.d_q, in.dim);
    for (int64_t c = 0; c < block.column_tiles(); ++c) {
      block.set_columns(c);
      SecondTile<T> tile(args, block);
      tile.finish(block, static_cast<T>(in.scale));
      block.set_weights(tile.slope);
      block.add_product(block.columns(in.v, in.value_dim), d_grad, c > 0);
      block.set_weights(tile.p);
      block.add_product(block.columns(args.v_v, in.value_dim), d_grad, true);
      block.set_weights(tile.dp);
      block.add_product(block.columns(args.v_k, in.dim), d_q, c > 0);
      block.set_weights(tile.w);
      block.add_product(block.columns(in.k, in.dim), d_q, true);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    second_columns_kernel(const __grid_constant__ AttentionDoubleBackwardArgs args) {
  __shared__ Shared<T> shared;
  const AttentionInputs& in = args.in;
  const int64_t tiles = ceil_div(in.columns, kTile), row_tiles = ceil_div(in.rows, kTile);
  for_units(in.batch * in.heads * tiles, [&](int64_t unit) {
    Block<T> block(in, shared, unit / tiles, 0);
    block.set_columns(unit % tiles);
    const Band<T> d_k = block.columns(args.d_k, in.dim);
    const Band<T> d_v = block.columns(args.d_v, in.value_dim);
    for (int64_t r = block.first_row_tile(); r < row_tiles; ++r) {
      block.set_rows(r);
      load_rows<T>(block, shared, args.stats);
      SecondTile<T> tile(args, block);
      tile.finish(block, static_cast<T>(in.scale));
      block.set_weights(tile.dp, true);
      block.add_product(block.rows(args.v_q, in.dim), d_k, true);
      block.set_weights(tile.w, true);
      block.add_product(block.rows(in.q, in.dim), d_k, true);
      block.set_weights(tile.slope, true);
      block.add_product(block.rows(args.grad, in.value_dim), d_v, true);
    }
  });
}

// A block a tile of rows, or of columns.
template <class Args>
void launch_tiles(void (*kernel)(Args), int64_t side, void* stream, const Args& args) {
  const int64_t units = args.in.batch * args.in.heads * ceil_div(side, kTile);
  if (units > 0) launch(kernel, units, kThreads, stream, args);
}

}  // namespace

void attention_cuda(const AttentionArgs& args, void* stream) {
  launch_tiles(args.in.float64 ? forward_kernel<double> : forward_kernel<float>, args.in.rows,
               stream, args);
}

void attention_backward_cuda(const AttentionBackwardArgs& args, void* stream) {
  const bool wide = args.in.float64;
  launch_tiles(wide ? backward_kernel<double, false> : backward_kernel<float, false>, args.in.rows,
               stream, args);
  launch_tiles(wide ? backward_kernel<double, true> : backward_kernel<float, true>, args.in.columns,
               stream, args);
}

void attention_double_backward_cuda(const AttentionDoubleBackwardArgs& args, void* stream) {
  const bool wide = args.in.float64;
  launch_tiles(wide ? second_rows_kernel<double> : second_rows_kernel<float>, args.in.rows, stream,
               args);
  launch_tiles(wide ? second_columns_kernel<double> : second_columns_kernel<float>, args.in.columns,
               stream, args);
}

}  // namespace robustcore::density
