#include "common/math.h"
#include "common/winograd_group.h"
#include "lipschitz/series.h"

namespace robustcore::lipschitz {
inline namespace RC_ISA {
namespace {

// Plain loops over contiguous memory: the compiler's vectors reach the memory's speed here. The
// pointers may alias element by element, which is why `ivdep` is right and `restrict` is not.
template <class E, bool kA, bool kB, bool kTotal>
void update_run(const UpdateArgs& args, int64_t first, int64_t last) {
  using T = Arithmetic<E>;
  const E* z = static_cast<const E*>(args.z);
  const E* a = static_cast<const E*>(args.a);
  const E* b = static_cast<const E*>(args.b);
  const E* total = static_cast<const E*>(args.total);
  E* out = static_cast<E*>(args.out);
  E* total_out = static_cast<E*>(args.total_out);
  const T alpha = static_cast<T>(args.alpha), beta = static_cast<T>(args.beta);
  const T gamma = static_cast<T>(args.gamma), delta = static_cast<T>(args.delta);
  const T total_scale = static_cast<T>(args.total_scale);
#pragma GCC ivdep
  for (int64_t i = first; i < last; ++i) {
    T v = alpha * convert<T>(z[i]);
    if constexpr (kA) v = fused_multiply_add(beta, convert<T>(a[i]), v);
    if constexpr (kB) v = fused_multiply_add(gamma, convert<T>(b[i]), v);
    out[i] = convert<E>(v);
    if constexpr (kTotal) {
      total_out[i] = convert<E>(fused_multiply_add(delta, v, total_scale * convert<T>(total[i])));
    }
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(update)(const UpdateArgs& args, int64_t begin, int64_t end) {
  const int64_t first = begin * kUpdateRun;
  const int64_t last = std::min(end * kUpdateRun, args.count);
  dispatch(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    const auto with_total = [&](auto a, auto b) {
      constexpr bool kA = decltype(a)::value, kB = decltype(b)::value;
      return args.total ? update_run<E, kA, kB, true>(args, first, last)
                        : update_run<E, kA, kB, false>(args, first, last);
    };
    if (args.a && args.b) return with_total(std::true_type{}, std::true_type{});
    if (args.a) return with_total(std::true_type{}, std::false_type{});
    if (args.b) return with_total(std::false_type{}, std::true_type{});
    return with_total(std::false_type{}, std::false_type{});
  });
}

#if defined(__AVX2__)
inline namespace RC_ISA {
namespace {

using Float = Lanes::Float;

// What one step makes of a result z of L:
//   v = scale * z + own * x + carry * after,  total += total_scale * v.
// Absent parts are null; `staged` ones lie like the images that are convolved.
struct Step {
  int64_t channels, padded;
  Float scale, own, carry, total_scale;
  const float *staged_x, *staged_after;
  float *staged_out, *out, *total;

  template <class Pixel>
  void operator()(const Pixel& at, int64_t c, Float z) const {
    const int64_t s = at.staged * padded + c, d = at.dense * channels + c, lanes = channels - c;
    Float v = scale * z;
    if (staged_x) v = Lanes::fma(own, Lanes::load(staged_x + s), v);
    if (staged_after) v = Lanes::fma(carry, Lanes::load(staged_after + s), v);
    if (staged_out) Lanes::store(staged_out + s, v);
    if (out) store_first(out + d, v, lanes);
    if (!total) return;
    store_first(total + d, Lanes::fma(total_scale, v, load_first(total + d, lanes)), lanes);
  }
};

template <int M>
class Series {
 public:
  Series(const SeriesArgs& args, const WinogradPlan& plan, ScratchFloats& scratch)
      : args_(args), plan_(plan), group_(plan) {
    for (float*& staged : staged_) staged = scratch.take_zeros(plan.staged());
    patches_ = scratch.take(plan.patches());
    products_ = scratch.take(plan.products());
  }

  // y, if it is wanted, and u[k] at kept + (k - 1) * stride; both of this group.
  void forward(int64_t g, float* kept, int64_t stride, float* y) {
    const int64_t d = args_.degree;
    const float last = args_.coefficients[d];
    group_.start(g);
    group_.stage(args_.x, true, staged_[0]);
    for (int64_t k = d - 1; k >= (y ? 0 : 1); --k) {
      float scale = k ? args_.step : args_.first, own = args_.coefficients[k];
      const float* from = buffer(k + 1);
      const float* after = nullptr;
      if (k == d - 1) {  // u[d] is a multiple of x
        from = staged_[0];
        scale *= last;
      } else if (k == d - 2) {
        own = __builtin_fmaf(args_.carry, last, own);
      } else if (args_.carry != 0.0f) {
        after = buffer(k);
      }
      Step step = step_of(scale, after);
      step.staged_x = staged_[0], step.own = Lanes::splat(own);
      step.staged_out = k ? buffer(k) : nullptr;
      step.out = k == 0 ? y : kept ? kept + (k - 1) * stride : nullptr;
      group_.for_each_run([&](int64_t) {
        group_.transform(from, patches_);
        group_.convolve(patches_, args_.filter, products_, step);
      });
    }
  }

  // grad_x of this group, and its factors: with m's channels as the results' they are of the
  // flipped filter.
  void backward(int64_t g, const SeriesBackwardArgs& args, const float* kept, int64_t stride,
                const WinogradFactors& factors) {
    const int64_t d = args_.degree;
    group_.start(g);
    group_.stage(args.grad, true, buffer(0));
    const int64_t first = group_.first_image() * args_.image();
    float* grad_x = args.grad_x + first;
    for (int64_t i = 0; i < group_.images() * args_.image(); ++i) {
      grad_x[i] = args_.coefficients[0] * args.grad[first + i];
    }
    for (int64_t k = 0; k < d; ++k) {
      const float scale = k ? args_.step : args_.first;
      // The transpose of L is -L.
      Step step = step_of(-scale, k > 0 && args_.carry != 0.0f ? buffer(k + 1) : nullptr);
      step.staged_out = k + 1 < d ? buffer(k + 1) : nullptr;
      step.total = grad_x, step.total_scale = Lanes::splat(args_.coefficients[k + 1]);
      const float* u = k + 1 < d ? kept + k * stride : args_.x + first;
      const float weight = k + 1 < d ? scale : scale * args_.coefficients[d];
      group_.for_each_run([&](int64_t run) {
        group_.transform(buffer(k), factors.out(run, k));
        group_.convolve(factors.out(run, k), args_.filter, products_, step);
        group_.transform_adjoint(u, args_.channels(), weight, factors.in(run, k));
        factors.add(group_.tiles(), k);
      });
    }
  }

 private:
  float* buffer(int64_t k) const {
    return staged_[1 + k % 2];
  }
  Step step_of(float scale, const float* after) const {
    Step step{};
    step.channels = args_.channels(), step.padded = plan_.in;
    step.scale = Lanes::splat(scale);
    step.staged_after = after, step.carry = Lanes::splat(args_.carry);
    return step;
  }

  const SeriesArgs& args_;
  const WinogradPlan& plan_;
  WinogradGroup<M> group_;
  float *staged_[3], *patches_, *products_;
};

template <int M>
void backward_groups(const SeriesBackwardArgs& args, float* floats, int64_t begin, int64_t end) {
  const SeriesArgs& series = args.series;
  const int64_t image = series.image(), batch = args.plan.shape.images * image;
  const int64_t group = args.plan.group * image;
  ScratchFloats scratch(floats);
  Series<M> of_group(series, args.plan, scratch);
  WinogradFactors factors(args.plan, args.work, scratch.take(args.plan.first_scratch()));
  float* again = scratch.take(args.recomputed());
  factors.for_each_group(begin, end, [&](int64_t g) {
    const float* kept = series.kept ? series.kept + g * group : again;
    if (!series.kept) of_group.forward(g, again, group, nullptr);
    of_group.backward(g, args, kept, series.kept ? batch : group, factors);
  });
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(series)(const SeriesArgs& args, float* floats, int64_t begin, int64_t end) {
  const int64_t group = args.plan.group * args.image();
  dispatch_tile(args.plan.shape.tile, [&](auto tile) {
    ScratchFloats scratch(floats);
    Series<tile> series(args, args.plan, scratch);
    for (int64_t g = begin; g < end; ++g) {
      float* kept = args.kept ? args.kept + g * group : nullptr;
      series.forward(g, kept, args.plan.shape.images * args.image(), args.y + g * group);
    }
  });
}

void RC_VARIANT(series_backward)(const SeriesBackwardArgs& args, float* scratch, int64_t begin,
                                 int64_t end) {
  dispatch_tile(args.plan.shape.tile,
                [&](auto tile) { backward_groups<tile>(args, scratch, begin, end); });
}

#endif

}  // namespace robustcore::lipschitz
