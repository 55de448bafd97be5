#include "common/rows_cuda.h"
#include "smoothing/mean_softmax.h"

namespace robustcore::smoothing {
namespace {

// A block has an image: its warps take copies, its threads classes. Dtypes are told apart where
// logits are read, and not by kernels of their own: what is read is less than what is computed.
template <class T>
struct Image {
  using L = OneLane<T>;
  const MeanSoftmaxArgs& args;
  const MeanSoftmax<L> math;
  const int64_t image;
  const Team team{1};

  __device__ Image(const MeanSoftmaxArgs& args_, int64_t image_)
      : args(args_), math(args_), image(image_) {}

  __device__ T logit(int64_t copy, int64_t k) const {
    const StridedView& v = args.logits;
    return load_as<T>(v.data, v.dtype,
                      image * v.image_stride + copy * v.sample_stride + k * v.strides[0]);
  }
  // Of a tensor [images, copies, classes], of one [images, classes], of one [images, n, copies].
  __device__ T* of_copy(const void* data, int64_t copy) const {
    return const_cast<T*>(static_cast<const T*>(data)) +
           (image * args.copies + copy) * args.classes;
  }
  __device__ T* of_image(const void* data) const {
    return const_cast<T*>(static_cast<const T*>(data)) + image * args.classes;
  }
  __device__ T& a_copy(const void* data, int n, int which, int64_t copy) const {
    return const_cast<T*>(static_cast<const T*>(data))[(image * n + which) * args.copies + copy];
  }
  __device__ T max_of(int64_t copy) const {
    return a_copy(args.rows, 3, 0, copy);
  }
  __device__ T exponential(int64_t copy, int64_t k) const {
    return exp<L>(math.shifted(logit(copy, k), max_of(copy)));
  }
  __device__ T inverse(int64_t copy) const {
    return a_copy(args.rows, 3, 2, copy);
  }
  __device__ T log_p(int64_t copy, int64_t k) const {
    return math.log_p(logit(copy, k), max_of(copy), a_copy(args.rows, 3, 1, copy));
  }
  __device__ T weight(T l, int64_t k) const {
    return math.weight(l, of_image(args.log_mean)[k]);
  }

  template <class Body>
  __device__ void for_copies(const Body& body) const {
    RC_ROLL
    for (int64_t copy = team.warp; copy < args.copies; copy += kWarpsPerBlock) body(copy);
  }
  // Calls body(k) with the classes of this lane; below, of this thread.
  template <class Body>
  __device__ void for_classes(const Body& body) const {
    RC_ROLL
    for (int64_t k = team.lane; k < args.classes; k += kWarp) body(k);
  }
  template <class Body>
  __device__ void for_classes_of_block(const Body& body) const {
    RC_ROLL
    for (int64_t k = threadIdx.x; k < args.classes; k += kThreads) body(k);
  }
  // The sum over a copy's classes, in every lane of its warp.
  template <class Term>
  __device__ T sum_of_copy(const Term& term) const {
    return sum_over(team, true, args.classes, T(0), [&](int64_t first, int64_t end, T s) {
      RC_ROLL
      for (int i = 0; i < kAhead && first + i * kWarp < end; ++i) s += term(first + i * kWarp);
      return s;
    });
  }
};

// The mean's logarithm from those of the copies, where it is too small for T.
template <class T>
__device__ T log_mean_of_tiny(const Image<T>& image, int64_t k) {
  using L = OneLane<T>;
  T max = T(-INFINITY), sum = 0;
  RC_ROLL
  for (int64_t copy = 0; copy < image.args.copies; ++copy) max = L::max(max, image.log_p(copy, k));
  const T shift = MeanSoftmax<L>::shift_of(max);
  RC_ROLL
  for (int64_t copy = 0; copy < image.args.copies; ++copy) {
    sum += exp<L>(image.log_p(copy, k) - shift);
  }
  return max + MeanSoftmax<L>::log_of(image.math.share * sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    mean_softmax_kernel(const __grid_constant__ MeanSoftmaxArgs args) {
  using L = OneLane<T>;
  for_units(args.images, [&](int64_t index) {
    const Image<T> image(args, index);
    image.for_copies([&](int64_t copy) {
      T max = T(-INFINITY);
      image.for_classes(
          [&](int64_t k) { max = L::max(max, image.math.shifted(image.logit(copy, k), T(0))); });
      max = warp_max(max);
      const T sum = image.sum_of_copy(
          [&](int64_t k) { return exp<L>(image.math.shifted(image.logit(copy, k), max)); });
      if (image.team.lane != 0) return;
      image.a_copy(args.rows, 3, 0, copy) = max;
      image.a_copy(args.rows, 3, 1, copy) = MeanSoftmax<L>::log_of(sum);
      image.a_copy(args.rows, 3, 2, copy) = T(1) / sum;
    });
    __syncthreads();
    image.for_classes_of_block([&](int64_t k) {
      T total = 0, sum = 0;
      RC_ROLL
      for (int64_t copy = 0; copy < args.copies; ++copy) {
        sum = L::fma(image.exponential(copy, k), image.inverse(copy), sum);
        total += image.log_p(copy, k);
      }
      const T mean = image.math.share * sum, tiny = MeanSoftmax<L>::kTiny;
      image.of_image(args.log_mean)[k] =
          mean < tiny ? log_mean_of_tiny(image, k) : MeanSoftmax<L>::log_of(mean);
      image.of_image(args.mean_log)[k] = image.math.share * total;
    });
  });
}

// G of an element, whose probability is p.
template <class T>
__device__ T gradient(const Image<T>& image, const MeanSoftmaxBackwardArgs& args, T p, int64_t copy,
                      int64_t k) {
  const auto& math = image.math;
  const T log_mean = image.of_image(image.args.log_mean)[k];
  const T first = image.of_image(args.grad_log_mean)[k];
  const T second = image.of_image(args.grad_mean_log)[k];
  if (log_mean < MeanSoftmax<OneLane<T>>::kLogTiny) {
    return math.gradient(math.weight(image.log_p(copy, k), log_mean), first, second);
  }
  return math.gradient(p, first * math.weight_of_p(log_mean), second);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    mean_softmax_backward_kernel(const __grid_constant__ MeanSoftmaxBackwardArgs args) {
  for_units(args.forward.images, [&](int64_t index) {
    const Image<T> image(args.forward, index);
    image.for_copies([&](int64_t copy) {
      T* const grad = image.of_copy(args.grad, copy);
      const T inverse = image.inverse(copy);
      const T sum = image.sum_of_copy([&](int64_t k) {
        return gradient(image, args, image.exponential(copy, k) * inverse, copy, k);
      });
      image.for_classes([&](int64_t k) {
        const T p = image.exponential(copy, k) * inverse;
        grad[k] = image.math.final_gradient(gradient(image, args, p, copy, k), p, sum);
      });
    });
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>) mean_softmax_double_backward_kernel(
    const __grid_constant__ MeanSoftmaxDoubleBackwardArgs args) {
  using L = OneLane<T>;
  for_units(args.backward.forward.images, [&](int64_t index) {
    const Image<T> image(args.backward.forward, index);
    image.for_copies([&](int64_t copy) {
      const T* const v = image.of_copy(args.v, copy);
      const T mean =
          image.sum_of_copy([&](int64_t k) { return exp<L>(image.log_p(copy, k)) * v[k]; });
      const T sum = image.sum_of_copy([&](int64_t k) {
        return image.math.gradient(image.weight(image.log_p(copy, k), k),
                                   image.of_image(args.backward.grad_log_mean)[k],
                                   image.of_image(args.backward.grad_mean_log)[k]);
      });
      if (image.team.lane != 0) return;
      image.a_copy(args.sums, 2, 0, copy) = mean;
      image.a_copy(args.sums, 2, 1, copy) = sum;
    });
    __syncthreads();
    const auto centred = [&](int64_t copy, int64_t k) {
      return image.math.centred(image.of_copy(args.v, copy)[k],
                                image.a_copy(args.sums, 2, 0, copy));
    };
    image.for_classes_of_block([&](int64_t k) {
      T second_log_mean = 0, second_mean_log = 0;
      for (int64_t copy = 0; copy < image.args.copies; ++copy) {
        const T u = centred(copy, k);
        second_log_mean = L::fma(image.weight(image.log_p(copy, k), k), u, second_log_mean);
        second_mean_log = L::fma(image.math.share, u, second_mean_log);
      }
      image.of_image(args.second_log_mean)[k] = second_log_mean;
      image.of_image(args.second_mean_log)[k] = second_mean_log;
    });
    __syncthreads();
    image.for_copies([&](int64_t copy) {
      const auto h = [&](int64_t k) {
        return image.of_image(args.backward.grad_log_mean)[k] *
               image.weight(image.log_p(copy, k), k) *
               (centred(copy, k) - image.of_image(args.second_log_mean)[k]);
      };
      const T h_sum = image.sum_of_copy(h), g_sum = image.a_copy(args.sums, 2, 1, copy);
      T* const second = image.of_copy(args.second, copy);
      image.for_classes([&](int64_t k) {
        second[k] = image.math.final_second(h(k), exp<L>(image.log_p(copy, k)), centred(copy, k),
                                            h_sum, g_sum);
      });
    });
  });
}

}  // namespace

void mean_softmax_cuda(const MeanSoftmaxArgs& args, void* stream) {
  dispatch_arithmetic(args.logits.dtype, [&](auto tag) {
    launch(mean_softmax_kernel<decltype(tag)>, args.images, kThreads, stream, args);
  });
}

void mean_softmax_backward_cuda(const MeanSoftmaxBackwardArgs& args, void* stream) {
  dispatch_arithmetic(args.forward.logits.dtype, [&](auto tag) {
    launch(mean_softmax_backward_kernel<decltype(tag)>, args.forward.images, kThreads, stream,
           args);
  });
}

void mean_softmax_double_backward_cuda(const MeanSoftmaxDoubleBackwardArgs& args, void* stream) {
  const MeanSoftmaxArgs& forward = args.backward.forward;
  dispatch_arithmetic(forward.logits.dtype, [&](auto tag) {
    launch(mean_softmax_double_backward_kernel<decltype(tag)>, forward.images, kThreads, stream,
           args);
  });
}

}  // namespace robustcore::smoothing
