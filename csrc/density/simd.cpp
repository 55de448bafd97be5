#include "density/simd.h"

#include "density/lanes.h"

namespace robustcore::density {
inline namespace RC_ISA {
namespace {

template <class L>
RC_HOST_DEVICE typename L::Real reduce_max(const typename L::Float (&maxima)[kWays<L>]) {
  auto m = maxima[0];
  for (int way = 1; way < kWays<L>; ++way) m = L::max(m, maxima[way]);
  typename L::Real a[L::kFloats];
  L::store(a, m);
  for (int i = 1; i < L::kFloats; ++i) a[0] = a[i] > a[0] ? a[i] : a[0];
  return a[0];
}

// Elements [first, first + count) of a row, plus `bias`, where they lie if they lie right.
template <class T>
RC_HOST_DEVICE const T* segment(const StridedView& view, const void* bias, int64_t row,
                                int64_t first, int64_t count, T* buffer) {
  constexpr DType type = sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
  const T* in = buffer;
  if (view.dtype == type && view.dims == 1 && view.strides[0] == 1) {
    in = static_cast<const T*>(view.data) + row * view.image_stride + first;
  } else {
    load_elements(view, row, 0, first, count, buffer);
  }
  if (!bias) return in;
  const T* b = static_cast<const T*>(bias) + first;
  for (int64_t i = 0; i < count; ++i) buffer[i] = in[i] + b[i];
  return buffer;
}

// Where a segment of results is written, and how it gets to memory of another dtype.
template <class T>
class Out {
 public:
  Out(void* data, DType dtype, int64_t columns) : data_(data), dtype_(dtype), columns_(columns) {}

  T* begin(int64_t row, int64_t first) {
    at_ = row * columns_ + first;
    constexpr DType type = sizeof(T) == sizeof(double) ? DType::kFloat64 : DType::kFloat32;
    return dtype_ == type ? static_cast<T*>(data_) + at_ : buffer_;
  }
  void end(const T* written, int64_t count) {
    if (written != buffer_) return;
    dispatch(dtype_, [&](auto tag) {
      auto* to = static_cast<decltype(tag)*>(data_) + at_;
      for (int64_t i = 0; i < count; ++i) to[i] = convert<decltype(tag)>(buffer_[i]);
    });
  }

 private:
  void* data_;
  DType dtype_;
  int64_t columns_, at_ = 0;
  T buffer_[kSegment];
};

template <class Body>
RC_HOST_DEVICE void for_segments(int64_t count, const Body& body) {
  for (int64_t first = 0; first < count; first += kSegment) {
    body(first, count - first < kSegment ? count - first : kSegment);
  }
}

// The column of the row's target, or -1 if it is not here.
RC_HOST_DEVICE int64_t target_column(const Logits& logits, int64_t row) {
  if (!logits.targets) return -1;
  const int64_t k = logits.targets[row] - logits.first_class;
  return k >= 0 && k < logits.classes ? k : -1;
}

// ---- log-sum-exp ---------------------------------------------------------------------------------

template <class T>
void lse_rows(const LseArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  using One = OneLane<T>;
  using Float = typename L::Float;
  const Logits& logits = args.logits;
  T* const max = static_cast<T*>(args.max);
  T* const sum = static_cast<T*>(args.sum);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    Scaled<T> total{T(-INFINITY), T(0)};
    if (max && !args.first) total = {max[row], sum[row]};
    const int64_t target = target_column(logits, row);
    for_segments(logits.classes, [&](int64_t first, int64_t count) {
      const T* z = segment(logits.z, logits.bias, row, first, count, buffer);
      if (target >= first && target < first + count) {
        static_cast<T*>(args.target_logits)[row] = z[target - first];
      }
      Float maxima[kWays<L>], sums[kWays<L>];
      for (int way = 0; way < kWays<L>; ++way) {
        maxima[way] = L::splat(T(-INFINITY));
        sums[way] = L::splat(T(0));
      }
      for_lanes<L>(count, [&](int64_t i, int n, int way) {
        maxima[way] = L::max(maxima[way], load<L>(z + i, n, T(-INFINITY)));
      });
      const T m = reduce_max<L>(maxima);
      const Float shift = L::splat(shift_of(m));
      for_lanes<L>(count, [&](int64_t i, int n, int way) {
        sums[way] = sums[way] + exp<L>(load<L>(z + i, n, T(-INFINITY)) - shift);
      });
      total = add_exp<One>(total, {m, tree<L>(sums)});
    });
    if (max) max[row] = total.max, sum[row] = total.sum;
    static_cast<T*>(args.lse)[row] = lse_of<One>(total);
  }
}

void lse(const LseArgs& args, int64_t begin, int64_t end) {
  with_arithmetic(args.logits.z.dtype, [&](auto t) { lse_rows<decltype(t)>(args, begin, end); });
}

template <class T>
void lse_grad_rows(const LseGradArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  const Logits& logits = args.logits;
  Out<T> out(args.weights, args.dtype, logits.classes);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const auto grad = L::splat(at_row<T>(args.grad, row));
    const auto shift = L::splat(probability_shift(at_row<T>(args.lse, row)));
    const int64_t target = target_column(logits, row);
    for_segments(logits.classes, [&](int64_t first, int64_t count) {
      const T* z = segment(logits.z, logits.bias, row, first, count, buffer);
      T* to = out.begin(row, first);
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        store<L>(to + i, grad * exp<L>(load<L>(z + i, n, T(0)) - shift), n);
      });
      if (target >= first && target < first + count) {
        to[target - first] += at_row<T>(args.grad_target, row);
      }
      out.end(to, count);
    });
  }
}

void lse_grad(const LseGradArgs& args, int64_t begin, int64_t end) {
  with_arithmetic(args.logits.z.dtype,
                  [&](auto t) { lse_grad_rows<decltype(t)>(args, begin, end); });
}

template <class T>
void lse_hess_rows(const LseHessArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  using Float = typename L::Float;
  const Logits& logits = args.logits;
  Out<T> curvature(args.curvature, args.dtype, logits.classes);
  Out<T> weights(args.weights, args.dtype, logits.classes);
  T z_buffer[kSegment], v_buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const auto shift = L::splat(probability_shift(at_row<T>(args.lse, row)));
    T* const dot = static_cast<T*>(args.dot) + row;
    if (args.reduce) {
      for_segments(logits.classes, [&](int64_t first, int64_t count) {
        const T* z = segment(logits.z, logits.bias, row, first, count, z_buffer);
        const T* v = segment(args.v, args.v_bias, row, first, count, v_buffer);
        Float sums[kWays<L>];
        for (int way = 0; way < kWays<L>; ++way) sums[way] = L::splat(T(0));
        for_lanes<L>(count, [&](int64_t i, int n, int way) {
          const Float p = exp<L>(load<L>(z + i, n, T(-INFINITY)) - shift);
          sums[way] = L::fma(p, load<L>(v + i, n, T(0)), sums[way]);
        });
        *dot += tree<L>(sums);
      });
    }
    if (!args.curvature) continue;
    const auto grad = L::splat(at_row<T>(args.grad, row)), mean = L::splat(*dot);
    const int64_t target = target_column(logits, row);
    for_segments(logits.classes, [&](int64_t first, int64_t count) {
      const T* z = segment(logits.z, logits.bias, row, first, count, z_buffer);
      const T* v = segment(args.v, args.v_bias, row, first, count, v_buffer);
      T* const c = curvature.begin(row, first);
      T* const w = args.weights ? weights.begin(row, first) : nullptr;
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        const Float p = grad * exp<L>(load<L>(z + i, n, T(0)) - shift);
        store<L>(c + i, p * (load<L>(v + i, n, T(0)) - mean), n);
        if (w) store<L>(w + i, p, n);
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

void lse_hess(const LseHessArgs& args, int64_t begin, int64_t end) {
  with_arithmetic(args.logits.z.dtype,
                  [&](auto t) { lse_hess_rows<decltype(t)>(args, begin, end); });
}

// ---- norms ---------------------------------------------------------------------------------------

template <class T, Norm kNorm>
void norm_rows(const NormArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  using One = OneLane<T>;
  using Float = typename L::Float;
  const T p = static_cast<T>(args.p);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    Scaled<T> total{T(0), T(0)};
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = segment(args.g, nullptr, row, first, count, buffer);
      Float maxima[kWays<L>], sums[kWays<L>];
      for (int way = 0; way < kWays<L>; ++way) maxima[way] = sums[way] = L::splat(T(0));
      for_lanes<L>(count, [&](int64_t i, int n, int way) {
        maxima[way] = L::max(maxima[way], abs<L>(load<L>(g + i, n, T(0))));
      });
      const T m = reduce_max<L>(maxima);
      const Float scale = L::splat(scale_of(m));
      for_lanes<L>(count, [&](int64_t i, int n, int way) {
        const Float u = abs<L>(load<L>(g + i, n, T(0))) / scale;
        sums[way] = sums[way] + norm_term<L, kNorm>(u, p);
      });
      total = add_power<One, kNorm>(total, {m, tree<L>(sums)}, p);
    });
    static_cast<T*>(args.norm)[row] = norm_of<One, kNorm>(total, p);
  }
}

void norm(const NormArgs& args, int64_t begin, int64_t end) {
  with_arithmetic(args.g.dtype, [&](auto t) {
    with_norm(args.p,
              [&](auto kind) { norm_rows<decltype(t), decltype(kind)::value>(args, begin, end); });
  });
}

// By how many elements a row's dual is shared: at infinity those that reach the maximum, else 1.
template <class T, Norm kNorm>
T sharers(const StridedView& view, int64_t row, int64_t elements, typename LanesOf<T>::Float scale,
          T* buffer) {
  using L = LanesOf<T>;
  if constexpr (kNorm != Norm::kInf) return 1;
  T shared = 0;
  for_segments(elements, [&](int64_t first, int64_t count) {
    const T* g = segment(view, nullptr, row, first, count, buffer);
    typename L::Float sums[kWays<L>];
    for (int way = 0; way < kWays<L>; ++way) sums[way] = L::splat(T(0));
    for_lanes<L>(count, [&](int64_t i, int n, int way) {
      sums[way] = sums[way] + abs<L>(dual<L, kNorm>(load<L>(g + i, n, T(0)), scale, T(0)));
    });
    shared += tree<L>(sums);
  });
  return shared;
}

template <class T, Norm kNorm>
void norm_grad_rows(const NormGradArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  using Float = typename L::Float;
  const T p = static_cast<T>(args.p);
  Out<T> out(args.dual, args.dtype, args.elements);
  T buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const Float scale = L::splat(divisor(at_row<T>(args.norm, row)));
    const T shared = sharers<T, kNorm>(args.g, row, args.elements, scale, buffer);
    const Float grad = L::splat(at_row<T>(args.grad, row) / divisor(shared));
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = segment(args.g, nullptr, row, first, count, buffer);
      T* to = out.begin(row, first);
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        store<L>(to + i, grad * dual<L, kNorm>(load<L>(g + i, n, T(0)), scale, p), n);
      });
      out.end(to, count);
    });
  }
}

void norm_grad(const NormGradArgs& args, int64_t begin, int64_t end) {
  with_arithmetic(args.g.dtype, [&](auto t) {
    with_norm(args.p, [&](auto kind) {
      norm_grad_rows<decltype(t), decltype(kind)::value>(args, begin, end);
    });
  });
}

template <class T, Norm kNorm>
void norm_hess_rows(const NormHessArgs& args, int64_t begin, int64_t end) {
  using L = LanesOf<T>;
  using Float = typename L::Float;
  const T p = static_cast<T>(args.p);
  Out<T> out(args.curvature, args.dtype, args.elements);
  T g_buffer[kSegment], v_buffer[kSegment];
  for (int64_t row = begin; row < end; ++row) {
    const T norm = at_row<T>(args.norm, row);
    const Float scale = L::splat(divisor(norm));
    const T shared = sharers<T, kNorm>(args.g, row, args.elements, scale, g_buffer);
    T dot = 0;
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = segment(args.g, nullptr, row, first, count, g_buffer);
      const T* v = segment(args.v, nullptr, row, first, count, v_buffer);
      Float sums[kWays<L>];
      for (int way = 0; way < kWays<L>; ++way) sums[way] = L::splat(T(0));
      for_lanes<L>(count, [&](int64_t i, int n, int way) {
        const Float w = dual<L, kNorm>(load<L>(g + i, n, T(0)), scale, p);
        sums[way] = L::fma(w, load<L>(v + i, n, T(0)), sums[way]);
      });
      dot += tree<L>(sums);
    });
    dot /= divisor(shared);
    static_cast<T*>(args.dot)[row] = dot;
    const Float slope = L::splat(norm_slope(at_row<T>(args.grad, row), norm, p));
    for_segments(args.elements, [&](int64_t first, int64_t count) {
      const T* g = segment(args.g, nullptr, row, first, count, g_buffer);
      const T* v = segment(args.v, nullptr, row, first, count, v_buffer);
      T* to = out.begin(row, first);
      for_lanes<L>(count, [&](int64_t i, int n, int) {
        const Float c = norm_curvature<L, kNorm>(load<L>(g + i, n, T(0)), load<L>(v + i, n, T(0)),
                                                 scale, slope, L::splat(dot), p);
        store<L>(to + i, c, n);
      });
      out.end(to, count);
    });
  }
}

void norm_hess(const NormHessArgs& args, int64_t begin, int64_t end) {
  with_arithmetic(args.g.dtype, [&](auto t) {
    with_norm(args.p, [&](auto kind) {
      norm_hess_rows<decltype(t), decltype(kind)::value>(args, begin, end);
    });
  });
}

}  // namespace
}  // namespace RC_ISA

const SimdKernels RC_CONCAT(simd_, RC_ISA) = {
    lse,       lse_grad,        lse_hess,         norm,          norm_grad,
    norm_hess, batch_norm_sums, batch_norm_write,
#if defined(__AVX2__)
    conv,      conv_kernel,     conv_factors,     conv_gradient, 2 * Lanes::kFloats,
#else
    nullptr, nullptr,  nullptr,  nullptr, 0,
#endif
};

}  // namespace robustcore::density
