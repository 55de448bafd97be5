#include <algorithm>

#include "common/products_simd.h"
#include "density/attention.h"

namespace robustcore::density {
inline namespace RC_ISA {
namespace {

// A tile of rows of one head. What rows and columns make is held as strips, [columns, kTile]: a row
// is a lane, so that sums over columns need no sum over lanes, and a strip is a factor of any
// product as it lies.
template <class T>
class RowTile {
 public:
  using L = LanesOf<T>;
  using Float = typename L::Float;
  static constexpr int kLanes = L::kFloats, kVectors = kTile / kLanes;

  RowTile(const AttentionInputs& in, float* scratch, int64_t head, int64_t tile)
      : in_(in),
        free_(reinterpret_cast<T*>(scratch)),
        first_(tile * kTile),
        count_(std::min<int64_t>(kTile, in.rows - first_)),
        columns_(in.causal ? std::min(in.columns, first_ + count_) : in.columns),
        row_(head * in.rows + first_),
        column_(head * in.columns),
        mask_(mask_of<T>(in, head)) {}

  int64_t count() const {
    return count_;
  }
  int64_t columns() const {
    return columns_;
  }
  // The tile's rows, and the head's columns, of a matrix [.., width].
  template <class Data>
  auto* rows(Data* data, int64_t width) const {
    using Element = std::conditional_t<std::is_const_v<Data>, const T, T>;
    return static_cast<Element*>(data) + row_ * width;
  }
  template <class Data>
  auto* head_columns(Data* data, int64_t width) const {
    using Element = std::conditional_t<std::is_const_v<Data>, const T, T>;
    return static_cast<Element*>(data) + column_ * width;
  }

  T* take_strip() {
    return take(in_.columns * kTile);
  }
  T* take_lanes() {  // one value a row
    T* lanes = take(kTile);
    std::fill(lanes, lanes + kTile, T(0));
    return lanes;
  }
  // [width, kTile]; rows past the end are 0.
  const T* transposed(const void* data, int64_t width) {
    T* const to = take(width * kTile);
    const T* from = rows(data, width);
    for (int64_t d = 0; d < width; d += kLanes) {
      const int some = static_cast<int>(std::min<int64_t>(kLanes, width - d));
      for (int r = 0; r < kTile; r += kLanes) {
        Float block[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const bool there = r + i < count_;
          block[i] = there ? load<L>(from + (r + i) * width + d, some, T(0)) : L::splat(T(0));
        }
        if constexpr (kLanes > 1) L::transpose(block);
        for (int i = 0; i < some; ++i) L::store(to + (d + i) * kTile + r, block[i]);
      }
    }
    return to;
  }

  // strip = (strip or 0) + the tile's rows by the head's columns of `data`.
  void meet(const T* transposed_rows, const void* data, int64_t width, T* strip, bool add) const {
    const LeftFactor<T> left{head_columns(data, width), width, 1};
    multiply<L>(left, transposed_rows, kTile, columns_, kTile, width, strip, kTile, add);
  }
  // The tile's rows of `result` = (they or 0) + strip^T by columns [from, to) of `data`.
  void to_rows(const T* strip, int64_t from, int64_t to, const void* data, int64_t width,
               void* result, bool add) const {
    const LeftFactor<T> left{strip + from * kTile, 1, kTile};
    multiply<L>(left, head_columns(data, width) + from * width, width, count_, width, to - from,
                rows(result, width), width, add);
  }
  // The head's columns of `result` += strip by the tile's rows of `data`.
  void to_columns(const T* strip, const void* data, int64_t width, void* result) const {
    const LeftFactor<T> left{strip, kTile, 1};
    multiply<L>(left, rows(data, width), width, columns_, width, count_,
                head_columns(result, width), width, true);
  }

  // The strip of scaled logits, masked.
  T* scores() {
    T* const strip = take_strip();
    meet(transposed(in_.q, in_.dim), in_.k, in_.dim, strip, false);
    const T scale = static_cast<T>(in_.scale);
    for_vectors(
        [&](int64_t at, int) { L::store(strip + at, L::load(strip + at) * L::splat(scale)); });
    if (!mask_ && !in_.causal) return strip;
    for (int64_t j = 0; j < columns_; ++j) {
      for (int64_t r = 0; r < count_; ++r) {
        T& score = strip[j * kTile + r];
        const int64_t i = first_ + r;
        if (mask_) score = score + mask_[i * in_.mask_strides[2] + j * in_.mask_strides[3]];
        if (in_.causal && j > i) score = T(-INFINITY);
      }
    }
    return strip;
  }
  // Probabilities in the place of scores.
  T* probabilities(const void* lse) {
    T* const shift = take_lanes();
    const T* from = rows(lse, 1);
    for (int64_t r = 0; r < count_; ++r) shift[r] = probability_shift(from[r]);
    T* const strip = scores();
    for_vectors([&](int64_t at, int lane) {
      L::store(strip + at, exp<L>(L::load(strip + at) - L::load(shift + lane)));
    });
    return strip;
  }
  // <grad, out> of each row, both transposed.
  const T* delta(const T* grad, const T* out) {
    T* const lanes = take_lanes();
    for (int64_t at = 0; at < in_.value_dim * kTile; at += kLanes) {
      T* const sum = lanes + at % kTile;
      L::store(sum, L::fma(L::load(grad + at), L::load(out + at), L::load(sum)));
    }
    return lanes;
  }

  // Calls body(at, lane) with the vectors of a strip, each column's lanes in turn.
  template <class Body>
  RC_HOST_DEVICE void for_vectors(const Body& body) const {
    for (int64_t j = 0; j < columns_; ++j) {
      for (int lane = 0; lane < kTile; lane += kLanes) body(j * kTile + lane, lane);
    }
  }

 private:
  T* take(int64_t count) {
    T* taken = free_;
    free_ += count;
    return taken;
  }

  const AttentionInputs& in_;
  T* free_;
  int64_t first_, count_, columns_, row_, column_;
  const T* mask_;
};

template <class T>
void forward_tile(const AttentionArgs& args, float* scratch, int64_t head, int64_t index) {
  using L = LanesOf<T>;
  using One = OneLane<T>;
  const int64_t width = args.in.value_dim;
  RowTile<T> tile(args.in, scratch, head, index);
  T *max = tile.take_lanes(), *sum = tile.take_lanes(), *strip = tile.scores();
  std::fill(max, max + kTile, T(-INFINITY));
  tile.for_vectors([&](int64_t at, int lane) {
    L::store(max + lane, L::max(L::load(max + lane), L::load(strip + at)));
  });
  T* const lse = tile.rows(args.lse, 1);
  T highest[kTile];
  for (int r = 0; r < kTile; ++r) highest[r] = max[r], max[r] = shift_of(max[r]);
  tile.for_vectors([&](int64_t at, int lane) {
    const auto e = exp<L>(L::load(strip + at) - L::load(max + lane));
    L::store(strip + at, e);
    L::store(sum + lane, L::load(sum + lane) + e);
  });
  tile.to_rows(strip, 0, tile.columns(), args.in.v, width, args.out, false);
  T* const out = tile.rows(args.out, width);
  for (int64_t r = 0; r < tile.count(); ++r) {
    lse[r] = lse_of<One>(Scaled<T>{highest[r], sum[r]});
    const T inverse = sum[r] == T(0) ? T(0) : T(1) / sum[r];
    for (int64_t e = 0; e < width; ++e) out[r * width + e] *= inverse;
  }
}

template <class T>
void backward_tile(const AttentionBackwardArgs& args, float* scratch, int64_t head, int64_t index) {
  using L = LanesOf<T>;
  const AttentionInputs& in = args.in;
  RowTile<T> tile(in, scratch, head, index);
  T *p = tile.probabilities(args.lse), *dp = tile.take_strip();
  const T* grad = tile.transposed(args.grad, in.value_dim);
  tile.meet(grad, in.v, in.value_dim, dp, false);
  const T* delta = tile.delta(grad, tile.transposed(args.out, in.value_dim));
  const auto scale = L::splat(static_cast<T>(in.scale));
  tile.for_vectors([&](int64_t at, int lane) {
    const auto ds = score_gradient<L>(L::load(p + at), L::load(dp + at), L::load(delta + lane));
    L::store(dp + at, scale * ds);
  });
  tile.to_rows(dp, 0, tile.columns(), in.k, in.dim, args.d_q, false);
  tile.to_columns(dp, in.q, in.dim, args.d_k);
  tile.to_columns(p, args.grad, in.value_dim, args.d_v);
}

// t and rest of each row.
template <class T>
void sum_rows(const RowTile<T>& tile, const T* p, const T* dp, const T* slope, const T* w,
              const T* delta, T* t, T* rest) {
  using L = LanesOf<T>;
  tile.for_vectors([&](int64_t at, int lane) {
    const auto weight = L::load(p + at), s = L::load(slope + at);
    const auto both = L::fma(L::load(dp + at), s, L::load(w + at));
    L::store(t + lane, L::load(t + lane) + weight * s);
    L::store(rest + lane, L::load(rest + lane) + weight * both);
  });
  for (int r = 0; r < kTile; ++r) rest[r] = rest[r] - delta[r] * t[r];
}

template <class T>
void double_backward_tile(const AttentionDoubleBackwardArgs& args, float* scratch, int64_t head,
                          int64_t index) {
  using L = LanesOf<T>;
  const AttentionInputs& in = args.in;
  RowTile<T> tile(in, scratch, head, index);
  T *p = tile.probabilities(args.lse), *dp = tile.take_strip();
  T *slope = tile.take_strip(), *w = tile.take_strip();
  const T* grad = tile.transposed(args.grad, in.value_dim);
  tile.meet(grad, in.v, in.value_dim, dp, false);
  tile.meet(grad, args.v_v, in.value_dim, w, false);
  tile.meet(tile.transposed(args.v_q, in.dim), in.k, in.dim, slope, false);
  tile.meet(tile.transposed(in.q, in.dim), args.v_k, in.dim, slope, true);
  const auto scale = L::splat(static_cast<T>(in.scale));
  tile.for_vectors([&](int64_t at, int) { L::store(slope + at, scale * L::load(slope + at)); });
  const T* delta = tile.delta(grad, tile.transposed(args.out, in.value_dim));
  T *t = tile.take_lanes(), *rest = tile.take_lanes();
  sum_rows(tile, p, dp, slope, w, delta, t, rest);
  // In place: dS where dP was, H where W was, U where T was.
  tile.for_vectors([&](int64_t at, int lane) {
    const auto weight = L::load(p + at), g = L::load(dp + at), d = L::load(delta + lane);
    const auto dt = L::load(slope + at) - L::load(t + lane);
    const auto h = score_curvature<L>(weight, g, d, dt, L::load(w + at), L::load(rest + lane));
    L::store(w + at, scale * h);
    L::store(dp + at, scale * score_gradient<L>(weight, g, d));
    L::store(slope + at, weight * dt);
  });
  for (int64_t from = 0; from < tile.columns(); from += kTile) {
    const int64_t to = std::min<int64_t>(tile.columns(), from + kTile);
    tile.to_rows(slope, from, to, in.v, in.value_dim, args.d_grad, from > 0);
    tile.to_rows(p, from, to, args.v_v, in.value_dim, args.d_grad, true);
    tile.to_rows(dp, from, to, args.v_k, in.dim, args.d_q, from > 0);
    tile.to_rows(w, from, to, in.k, in.dim, args.d_q, true);
  }
  tile.to_columns(dp, args.v_q, in.dim, args.d_k);
  tile.to_columns(w, in.q, in.dim, args.d_k);
  tile.to_columns(slope, args.grad, in.value_dim, args.d_v);
}

// Calls body(tag, head) in the arithmetic type.
template <class Body>
void for_heads(const AttentionInputs& in, int64_t begin, int64_t end, const Body& body) {
  const auto all = [&](auto tag) {
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t tile = 0; tile < ceil_div(in.rows, kTile); ++tile) body(tag, head, tile);
    }
  };
  in.float64 ? all(double{}) : all(float{});
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(attention)(const AttentionArgs& args, float* scratch, int64_t begin, int64_t end) {
  const int64_t tiles = ceil_div(args.in.rows, kTile);
  const auto run = [&](auto tag) {
    for (int64_t unit = begin; unit < end; ++unit) {
      forward_tile<decltype(tag)>(args, scratch, unit / tiles, unit % tiles);
    }
  };
  args.in.float64 ? run(double{}) : run(float{});
}

void RC_VARIANT(attention_backward)(const AttentionBackwardArgs& args, float* scratch,
                                    int64_t begin, int64_t end) {
  for_heads(args.in, begin, end, [&](auto tag, int64_t head, int64_t tile) {
    backward_tile<decltype(tag)>(args, scratch, head, tile);
  });
}

void RC_VARIANT(attention_double_backward)(const AttentionDoubleBackwardArgs& args, float* scratch,
                                           int64_t begin, int64_t end) {
  for_heads(args.in, begin, end, [&](auto tag, int64_t head, int64_t tile) {
    double_backward_tile<decltype(tag)>(args, scratch, head, tile);
  });
}

}  // namespace robustcore::density
