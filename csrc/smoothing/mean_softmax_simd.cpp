#include "common/rows_simd.h"
#include "smoothing/mean_softmax.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

// Out of line: loops for each dtype would be copied to every place that reads a segment.
template <class T>
[[gnu::noinline]] void gather(const StridedView& view, int64_t image, int64_t copy, int64_t first,
                              int64_t count, T* buffer) {
  load_elements(view, image, copy, first, count, buffer);
}

// The logits of one image, and where it lies in what is contiguous.
template <class T>
class Image {
 public:
  Image(const MeanSoftmaxArgs& args, int64_t image) : args_(args), image_(image) {}

  // Elements [first, first + count) of a copy: where they lie if they lie right, else in a buffer.
  const T* logits(int64_t copy, int64_t first, int64_t count) {
    const StridedView& v = args_.logits;
    if (v.dtype == kDType<T> && v.dims == 1 && v.strides[0] == 1) {
      return static_cast<const T*>(v.data) + image_ * v.image_stride + copy * v.sample_stride +
             first;
    }
    gather(v, image_, copy, first, count, buffer_);
    return buffer_;
  }
  // Of a tensor [images, copies, classes], of one [images, classes], of one [images, n, copies].
  T* of_copy(const void* data, int64_t copy) const {
    return const_cast<T*>(static_cast<const T*>(data)) +
           (image_ * args_.copies + copy) * args_.classes;
  }
  T* of_image(const void* data) const {
    return const_cast<T*>(static_cast<const T*>(data)) + image_ * args_.classes;
  }
  T* a_copy(const void* data, int64_t n, int64_t which) const {
    return const_cast<T*>(static_cast<const T*>(data)) + (image_ * n + which) * args_.copies;
  }

 private:
  const MeanSoftmaxArgs& args_;
  const int64_t image_;
  T buffer_[kSegment];
};

template <class T>
class Kernel {
  using L = LanesOf<T>;
  using Float = typename L::Float;
  static constexpr T kNone = T(-INFINITY);  // a class past the end: its probability is 0

 public:
  Kernel(const MeanSoftmaxArgs& args, int64_t index)
      : args_(args),
        math_(args),
        image_(args, index),
        max_(image_.a_copy(args.rows, 3, 0)),
        log_sum_(image_.a_copy(args.rows, 3, 1)),
        inverse_(image_.a_copy(args.rows, 3, 2)),
        log_mean_(image_.of_image(args.log_mean)) {}

  // `exponentials`: [copies, classes]
  void forward(T* exponentials) {
    for (int64_t copy = 0; copy < args_.copies; ++copy) {
      max_[copy] = max_of_copy(copy);
      T* const e = exponentials + copy * args_.classes;
      log_sum_[copy] = sum_of_copy(copy, [&](Float z, int64_t at, int n) {
        const Float v = exp<L>(math_.shifted(z, max_[copy]));
        store<L>(e + at, v, n);
        return v;
      });
    }
    for_lanes<L>(args_.copies, [&](int64_t copy, int n, int) {
      const Float sum = load<L>(log_sum_ + copy, n, T(1));
      store<L>(log_sum_ + copy, Math::log_of(sum), n);
      store<L>(inverse_ + copy, L::splat(T(1)) / sum, n);
    });
    for (int64_t at = 0; at < args_.classes; at += L::kFloats) means_at(at, exponentials);
  }

  // `factor`: [classes]
  void backward(const MeanSoftmaxBackwardArgs& back, T* factor) {
    grad_log_mean_ = image_.of_image(back.grad_log_mean);
    grad_mean_log_ = image_.of_image(back.grad_mean_log);
    bool tiny = false;
    for (int64_t at = 0; at < args_.classes; at += L::kFloats) {
      const int n = lanes_at(at);
      const Float log_mean = load<L>(log_mean_ + at, n, T(0));
      const Float g = load<L>(grad_log_mean_ + at, n, T(0));
      tiny |= lanes_below<L>(log_mean, L::splat(Math::kLogTiny)) != 0;
      store<L>(factor + at, g * math_.weight_of_p(log_mean), n);
    }
    for (int64_t copy = 0; copy < args_.copies; ++copy) {
      T* const grad = image_.of_copy(back.grad, copy);
      tiny ? backward_of_copy<true>(copy, factor, grad)
           : backward_of_copy<false>(copy, factor, grad);
    }
  }

  void double_backward(const MeanSoftmaxDoubleBackwardArgs& twice) {
    grad_log_mean_ = image_.of_image(twice.backward.grad_log_mean);
    grad_mean_log_ = image_.of_image(twice.backward.grad_mean_log);
    T* const second_log_mean = image_.of_image(twice.second_log_mean);
    T* const second_mean_log = image_.of_image(twice.second_mean_log);
    T* const means = image_.a_copy(twice.sums, 2, 0);
    T* const sums = image_.a_copy(twice.sums, 2, 1);
    for (int64_t k = 0; k < args_.classes; ++k) second_log_mean[k] = second_mean_log[k] = T(0);
    for (int64_t copy = 0; copy < args_.copies; ++copy) {
      const T* const v = image_.of_copy(twice.v, copy);
      means[copy] = sum_of_copy(copy, [&](Float z, int64_t at, int n) {
        return exp<L>(log_p(z, copy)) * load<L>(v + at, n, T(0));
      });
      sums[copy] = sum_of_copy(copy, [&](Float z, int64_t at, int n) {
        return math_.gradient(weight(log_p(z, copy), at, n), load<L>(grad_log_mean_ + at, n, T(0)),
                              load<L>(grad_mean_log_ + at, n, T(0)));
      });
      for_classes(copy, [&](Float z, int64_t at, int n) {
        const Float u = math_.centred(load<L>(v + at, n, T(0)), means[copy]);
        const Float w = weight(log_p(z, copy), at, n);
        store<L>(second_log_mean + at, L::fma(w, u, load<L>(second_log_mean + at, n, T(0))), n);
        store<L>(second_mean_log + at,
                 L::fma(L::splat(math_.share), u, load<L>(second_mean_log + at, n, T(0))), n);
      });
    }
    for (int64_t copy = 0; copy < args_.copies; ++copy) {
      second_of_copy(copy, image_.of_copy(twice.v, copy), means[copy], sums[copy], second_log_mean,
                     image_.of_copy(twice.second, copy));
    }
  }

 private:
  using Math = MeanSoftmax<L>;

  int lanes_at(int64_t at) const {
    const int64_t left = args_.classes - at;
    return static_cast<int>(left < L::kFloats ? left : L::kFloats);
  }
  Float log_p(Float z, int64_t copy) const {
    return math_.log_p(z, max_[copy], log_sum_[copy]);
  }
  Float weight(Float l, int64_t at, int n) const {
    return math_.weight(l, load<L>(log_mean_ + at, n, T(0)));
  }

  T max_of_copy(int64_t copy) {
    T max = kNone;
    for_segments(args_.classes, [&](int64_t first, int64_t count) {
      const T* z = image_.logits(copy, first, count);
      max = segment_max<L>(count, max, [&](int64_t i, int n) {
        return math_.shifted(load<L>(z + i, n, kNone), T(0));
      });
    });
    return max;
  }
  // The sum over a copy's classes of term(z, at, n); that of a lane past the end has to be 0.
  template <class Term>
  T sum_of_copy(int64_t copy, const Term& term) {
    T total = 0;
    for_segments(args_.classes, [&](int64_t first, int64_t count) {
      const T* const z = image_.logits(copy, first, count);
      total += segment_sum<L>(count, [&](int64_t i, int n, Float before) {
        return before + term(load<L>(z + i, n, kNone), first + i, n);
      });
    });
    return total;
  }
  template <class Body>
  void for_classes(int64_t copy, const Body& body) {
    for_segments(args_.classes, [&](int64_t first, int64_t count) {
      const T* const z = image_.logits(copy, first, count);
      for_lanes<L>(count,
                   [&](int64_t i, int n, int) { body(load<L>(z + i, n, kNone), first + i, n); });
    });
  }

  // Both means of the classes of one vector.
  void means_at(int64_t at, const T* exponentials) {
    const int n = lanes_at(at);
    Float sum = L::splat(T(0)), total = sum;
    for (int64_t copy = 0; copy < args_.copies; ++copy) {
      const Float e = load<L>(exponentials + copy * args_.classes + at, n, T(1));
      sum = L::fma(e, L::splat(inverse_[copy]), sum);
      total = total + log_p(load<L>(image_.logits(copy, at, n), n, T(0)), copy);
    }
    const Float mean = L::splat(math_.share) * sum;
    Float log_mean = Math::log_of(mean);
    const uint32_t tiny = lanes_below<L>(mean, L::splat(Math::kTiny));
    if (tiny) log_mean = choose<L>(tiny, log_mean, log_mean_of_tiny(at, n));
    store<L>(log_mean_ + at, log_mean, n);
    store<L>(image_.of_image(args_.mean_log) + at, L::splat(math_.share) * total, n);
  }
  [[gnu::noinline]] Float log_mean_of_tiny(int64_t at, int n) {
    Float max = L::splat(kNone), sum = L::splat(T(0));
    const auto log_p_at = [&](int64_t copy) {
      return log_p(load<L>(image_.logits(copy, at, n), n, T(0)), copy);
    };
    for (int64_t copy = 0; copy < args_.copies; ++copy) max = L::max(max, log_p_at(copy));
    const Float shift = Math::shift_of(max);
    for (int64_t copy = 0; copy < args_.copies; ++copy) sum = sum + exp<L>(log_p_at(copy) - shift);
    return max + Math::log_of(L::splat(math_.share) * sum);
  }

  // G of n elements; `tiny`: of some class the mean is.
  template <bool kTiny>
  Float gradient(Float p, Float z, int64_t copy, int64_t at, int n, const T* factor) const {
    const Float shared = load<L>(grad_mean_log_ + at, n, T(0));
    const Float g = math_.gradient(p, load<L>(factor + at, n, T(0)), shared);
    if constexpr (!kTiny) return g;
    const Float log_mean = load<L>(log_mean_ + at, n, T(0));
    const uint32_t tiny = lanes_below<L>(log_mean, L::splat(Math::kLogTiny));
    return choose<L>(tiny, g,
                     math_.gradient(math_.weight(log_p(z, copy), log_mean),
                                    load<L>(grad_log_mean_ + at, n, T(0)), shared));
  }
  template <bool kTiny>
  void backward_of_copy(int64_t copy, const T* factor, T* grad) {
    const T sum = sum_of_copy(copy, [&](Float z, int64_t at, int n) {
      const Float p = exp<L>(math_.shifted(z, max_[copy])) * L::splat(inverse_[copy]);
      store<L>(grad + at, p, n);
      return gradient<kTiny>(p, z, copy, at, n, factor);
    });
    for_classes(copy, [&](Float z, int64_t at, int n) {
      const Float p = load<L>(grad + at, n, T(0));
      const Float g = gradient<kTiny>(p, z, copy, at, n, factor);
      store<L>(grad + at, math_.final_gradient(g, p, sum), n);
    });
  }
  void second_of_copy(int64_t copy, const T* v, T mean, T sum, const T* second_log_mean,
                      T* second) {
    const T h_sum = sum_of_copy(copy, [&](Float z, int64_t at, int n) {
      const Float u = math_.centred(load<L>(v + at, n, T(0)), mean);
      const Float h = load<L>(grad_log_mean_ + at, n, T(0)) * weight(log_p(z, copy), at, n) *
                      (u - load<L>(second_log_mean + at, n, T(0)));
      store<L>(second + at, h, n);
      return h;
    });
    for_classes(copy, [&](Float z, int64_t at, int n) {
      const Float u = math_.centred(load<L>(v + at, n, T(0)), mean);
      const Float h = load<L>(second + at, n, T(0));
      store<L>(second + at, math_.final_second(h, exp<L>(log_p(z, copy)), u, h_sum, sum), n);
    });
  }

  const MeanSoftmaxArgs& args_;
  const Math math_;
  Image<T> image_;
  T *const max_, *const log_sum_, *const inverse_, *const log_mean_;
  const T *grad_log_mean_ = nullptr, *grad_mean_log_ = nullptr;
};

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(mean_softmax)(const MeanSoftmaxArgs& args, float* scratch, int64_t begin,
                              int64_t end) {
  dispatch_arithmetic(args.logits.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = begin; i < end; ++i) {
      Kernel<T>(args, i).forward(reinterpret_cast<T*>(scratch));
    }
  });
}

void RC_VARIANT(mean_softmax_backward)(const MeanSoftmaxBackwardArgs& args, float* scratch,
                                       int64_t begin, int64_t end) {
  dispatch_arithmetic(args.forward.logits.dtype, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t i = begin; i < end; ++i) {
      Kernel<T>(args.forward, i).backward(args, reinterpret_cast<T*>(scratch));
    }
  });
}

void RC_VARIANT(mean_softmax_double_backward)(const MeanSoftmaxDoubleBackwardArgs& args,
                                              int64_t begin, int64_t end) {
  const MeanSoftmaxArgs& forward = args.backward.forward;
  dispatch_arithmetic(forward.logits.dtype, [&](auto tag) {
    for (int64_t i = begin; i < end; ++i) Kernel<decltype(tag)>(forward, i).double_backward(args);
  });
}

}  // namespace robustcore::smoothing
