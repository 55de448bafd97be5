#include "common/rows_simd.h"
#include "density/grad_norm.h"

namespace robustcore::density {
inline namespace RC_ISA {
namespace {

template <class T, Norm kNorm>
void norm_rows(const GradNormArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  using One = OneLane<T>;
  const T p = static_cast<T>(args.p);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    Scaled<T> total{T(0), T(0)};
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = load_segment(args.grad, row, first, count, buffer);
      const auto magnitude = [&](int64_t i, int n) { return abs<L>(load<L>(g + i, n, T(0))); };
      const T m = segment_max<L>(count, T(0), magnitude);
      const auto scale = L::splat(scale_of(m));
      const T s = segment_sum<L>(count, [&](int64_t i, int n, auto before) {
        return before + norm_term<L, kNorm>(magnitude(i, n) / scale, p);
      });
      total = add_power<One, kNorm>(total, {m, s}, p);
    });
    static_cast<T*>(args.norm)[row] = norm_of<One, kNorm>(total, p);
  }
}

// By how many elements a row's dual is shared: at infinity those that reach the maximum, else 1.
template <class T, Norm kNorm>
T sharers(const StridedView& grad, int64_t row, int64_t elements, typename LanesOf<T>::Float scale,
          T* buffer) {
  using L = LanesOf<T>;
  if constexpr (kNorm != Norm::kInf) return 1;
  T shared = 0;
  for_segments(elements, [&](int64_t first, int64_t count) {
    const T* g = load_segment(grad, row, first, count, buffer);
    shared += segment_sum<L>(count, [&](int64_t i, int n, auto before) {
      return before + abs<L>(dual<L, kNorm>(load<L>(g + i, n, T(0)), scale, T(0)));
    });
  });
  return shared;
}

template <class T, Norm kNorm>
void backward_rows(const GradNormBackwardArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  const T p = static_cast<T>(args.p);
  SegmentWriter<T> out(args.dual, args.grad.dtype, args.elements);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const auto scale = L::splat(divisor(at_row<T>(args.norm, row)));
    const T shared = sharers<T, kNorm>(args.grad, row, args.elements, scale, buffer);
    const auto upstream = L::splat(at_row<T>(args.upstream, row) / divisor(shared));
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = load_segment(args.grad, row, first, count, buffer);
      T* to = out.begin(row, first);
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        store<L>(to + i, upstream * dual<L, kNorm>(load<L>(g + i, n, T(0)), scale, p), n);
      });
      out.end(to, count);
    });
  }
}

template <class T, Norm kNorm>
void double_backward_rows(const GradNormDoubleBackwardArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  const T p = static_cast<T>(args.p);
  SegmentWriter<T> out(args.curvature, args.grad.dtype, args.elements);
  T g_buffer[kSegment], v_buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const T norm = at_row<T>(args.norm, row);
    const auto scale = L::splat(divisor(norm));
    const T shared = sharers<T, kNorm>(args.grad, row, args.elements, scale, g_buffer);
    T dot = 0;
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = load_segment(args.grad, row, first, count, g_buffer);
      const T* v = load_segment(args.v, row, first, count, v_buffer);
      dot += segment_sum<L>(count, [&](int64_t i, int n, auto before) {
        const auto w = dual<L, kNorm>(load<L>(g + i, n, T(0)), scale, p);
        return L::fma(w, load<L>(v + i, n, T(0)), before);
      });
    });
    dot /= divisor(shared);
    static_cast<T*>(args.dot)[row] = dot;
    const auto slope = L::splat(norm_slope(at_row<T>(args.upstream, row), norm, p));
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = load_segment(args.grad, row, first, count, g_buffer);
      const T* v = load_segment(args.v, row, first, count, v_buffer);
      T* to = out.begin(row, first);
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        const auto c = norm_curvature<L, kNorm>(load<L>(g + i, n, T(0)), load<L>(v + i, n, T(0)),
                                                scale, slope, L::splat(dot), p);
        store<L>(to + i, c, n);
      });
      out.end(to, count);
    });
  }
}

// Calls body with the arithmetic type and the kind of norm.
template <class Args, class Body>
void for_kind(const Args& args, const Body& body) {
  dispatch_arithmetic(args.grad.dtype,
                      [&](auto tag) { for_norm(args.p, [&](auto norm) { body(tag, norm); }); });
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(grad_norm)(const GradNormArgs& args, int64_t begin, int64_t end) {
  for_kind(args, [&](auto tag, auto norm) { norm_rows<decltype(tag), norm()>(args, begin, end); });
}

void RC_VARIANT(grad_norm_backward)(const GradNormBackwardArgs& args, int64_t begin, int64_t end) {
  for_kind(args,
           [&](auto tag, auto norm) { backward_rows<decltype(tag), norm()>(args, begin, end); });
}

void RC_VARIANT(grad_norm_double_backward)(const GradNormDoubleBackwardArgs& args, int64_t begin,
                                           int64_t end) {
  for_kind(args, [&](auto tag, auto norm) {
    double_backward_rows<decltype(tag), norm()>(args, begin, end);
  });
}

}  // namespace robustcore::density
