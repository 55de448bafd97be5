#include "common/rows_simd.h"
#include "density/logsumexp.h"

namespace robustcore::density {
inline namespace RC_ISA {
namespace {

// A segment of a row plus that of `bias`, if there is one.
template <class T>
RC_HOST_DEVICE const T* biased_segment(const StridedView& view, const void* bias, int64_t row,
                                       int64_t first, int64_t count, T* buffer) {
  const T* in = load_segment(view, row, first, count, buffer);
  if (!bias) return in;
  const T* b = static_cast<const T*>(bias) + first;
  for (int64_t i = 0; i < count; ++i) buffer[i] = in[i] + b[i];
  return buffer;
}

template <class T>
void logsumexp_rows(const LogsumexpArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  using One = OneLane<T>;
  const LogitsChunk& chunk = args.chunk;
  T* const max = static_cast<T*>(args.max);
  T* const sum = static_cast<T*>(args.sum);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    Scaled<T> total{T(-INFINITY), T(0)};
    if (max && !args.first) total = {max[row], sum[row]};
    const int64_t target = target_column(chunk, row);
    for_segments(chunk.classes, [&](int64_t first, int64_t count) {
      const T* z = biased_segment(chunk.logits, chunk.bias, row, first, count, buffer);
      if (target >= first && target < first + count) {
        static_cast<T*>(args.target_logits)[row] = z[target - first];
      }
      const T m = segment_max<L>(count, T(-INFINITY),
                                 [&](int64_t i, int n) { return load<L>(z + i, n, T(-INFINITY)); });
      const auto shift = L::splat(shift_of(m));
      const T s = segment_sum<L>(count, [&](int64_t i, int n, auto before) {
        return before + exp<L>(load<L>(z + i, n, T(-INFINITY)) - shift);
      });
      total = add_exp<One>(total, {m, s});
    });
    if (max) max[row] = total.max, sum[row] = total.sum;
    static_cast<T*>(args.lse)[row] = lse_of<One>(total);
  }
}

template <class T>
void backward_rows(const LogsumexpBackwardArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  const LogitsChunk& chunk = args.chunk;
  SegmentWriter<T> weights(args.weights, chunk.logits.dtype, chunk.classes);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const auto grad = L::splat(at_row<T>(args.grad, row));
    const auto shift = L::splat(probability_shift(at_row<T>(args.lse, row)));
    const int64_t target = target_column(chunk, row);
    for_segments(chunk.classes, [&](int64_t first, int64_t count) {
      const T* z = biased_segment(chunk.logits, chunk.bias, row, first, count, buffer);
      T* const w = weights.begin(row, first);
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        store<L>(w + i, grad * exp<L>(load<L>(z + i, n, T(0)) - shift), n);
      });
      if (target >= first && target < first + count) {
        w[target - first] += at_row<T>(args.grad_target, row);
      }
      weights.end(w, count);
    });
  }
}

template <class T>
void double_backward_rows(const LogsumexpDoubleBackwardArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  const LogitsChunk& chunk = args.chunk;
  SegmentWriter<T> curvature(args.curvature, chunk.logits.dtype, chunk.classes);
  SegmentWriter<T> weights(args.weights, chunk.logits.dtype, chunk.classes);
  T z_buffer[kSegment], v_buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const auto for_pairs = [&](const auto& body) {
      for_segments(chunk.classes, [&](int64_t first, int64_t count) {
        const T* z = biased_segment(chunk.logits, chunk.bias, row, first, count, z_buffer);
        const T* v = biased_segment(args.v, args.v_bias, row, first, count, v_buffer);
        body(z, v, first, count);
      });
    };
    const auto shift = L::splat(probability_shift(at_row<T>(args.lse, row)));
    T* const dot = static_cast<T*>(args.dot) + row;
    if (args.reduce) {
      for_pairs([&](const T* z, const T* v, int64_t, int64_t count) {
        *dot += segment_sum<L>(count, [&](int64_t i, int n, auto before) {
          const auto p = exp<L>(load<L>(z + i, n, T(-INFINITY)) - shift);
          return L::fma(p, load<L>(v + i, n, T(0)), before);
        });
      });
    }
    if (!args.curvature) continue;
    const auto grad = L::splat(at_row<T>(args.grad, row)), mean = L::splat(*dot);
    const int64_t target = target_column(chunk, row);
    for_pairs([&](const T* z, const T* v, int64_t first, int64_t count) {
      T* const c = curvature.begin(row, first);
      T* const w = args.weights ? weights.begin(row, first) : nullptr;
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        const auto weight = grad * exp<L>(load<L>(z + i, n, T(0)) - shift);
        store<L>(c + i, weight * (load<L>(v + i, n, T(0)) - mean), n);
        if (w) store<L>(w + i, weight, n);
      });
      curvature.end(c, count);
      if (!w) return;
      if (target >= first && target < first + count) {
        w[target - first] += at_row<T>(args.grad_target, row);
      }
      weights.end(w, count);
    });
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(logsumexp)(const LogsumexpArgs& args, int64_t begin, int64_t end) {
  dispatch_arithmetic(args.chunk.logits.dtype,
                      [&](auto tag) { logsumexp_rows<decltype(tag)>(args, begin, end); });
}

void RC_VARIANT(logsumexp_backward)(const LogsumexpBackwardArgs& args, int64_t begin, int64_t end) {
  dispatch_arithmetic(args.chunk.logits.dtype,
                      [&](auto tag) { backward_rows<decltype(tag)>(args, begin, end); });
}

void RC_VARIANT(logsumexp_double_backward)(const LogsumexpDoubleBackwardArgs& args, int64_t begin,
                                           int64_t end) {
  dispatch_arithmetic(args.chunk.logits.dtype,
                      [&](auto tag) { double_backward_rows<decltype(tag)>(args, begin, end); });
}

}  // namespace robustcore::density
