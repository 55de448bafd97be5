#include <algorithm>

#include "attacks/perceptual.h"
#include "common/strided.h"

namespace robustcore::attacks {
inline namespace RC_ISA {
namespace {

// total[k] = sum_c term(c, k) of neighbouring pixels k, of which compilers make vectors.
template <class T, class Term>
void sum_channels(int64_t channels, int count, const Term& term, T* total) {
  T parts[kParts][kColumns] = {};
  for (int64_t c = 0; c < channels; ++c) {
    T* part = parts[c % kParts];
#pragma GCC ivdep
    for (int k = 0; k < count; ++k) part[k] += term(c, k);
  }
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      for (int k = 0; k < count; ++k) parts[i][k] += parts[i + half][k];
    }
  }
  std::copy_n(parts[0], count, total);
}

// Columns of the one or the other image.
template <class E>
struct Columns {
  using T = Arithmetic<E>;
  const E* data;
  int64_t stride;  // from channel to channel
  T inverse[kColumns], slope[kColumns];

  Columns(const void* all, int64_t at, const PerceptualArgs& args, int count)
      : data(static_cast<const E*>(all) + at), stride(args.pixels) {
    T squares[kColumns];
    const auto square = [&](int64_t c, int k) { return (*this)(c, k) * (*this)(c, k); };
    sum_channels(args.channels, count, square, squares);
    for (int k = 0; k < count; ++k) {
      const auto of = Inverse<T>::of(squares[k]);
      inverse[k] = of.value, slope[k] = of.slope;
    }
  }
  T operator()(int64_t c, int k) const {
    return convert<T>(data[c * stride + k]);
  }
  T unit(int64_t c, int k) const {
    return (*this)(c, k) * inverse[k];
  }
};

// pulled(c, k) is the cotangent of the unit column's element.
template <class E, class Pulled>
void return_to(const Columns<E>& columns, int64_t channels, int count, const Pulled& pulled,
               E* grad) {
  using T = Arithmetic<E>;
  T along[kColumns];
  const auto term = [&](int64_t c, int k) { return columns(c, k) * pulled(c, k); };
  sum_channels(channels, count, term, along);
  for (int64_t c = 0; c < channels; ++c) {
#pragma GCC ivdep
    for (int k = 0; k < count; ++k) {
      const Inverse<T> inverse{columns.inverse[k], columns.slope[k]};
      grad[c * columns.stride + k] =
          convert<E>(returned(pulled(c, k), columns(c, k), along[k], inverse));
    }
  }
}

template <class E>
void compare_block(const PerceptualArgs& args, int64_t unit) {
  using T = Arithmetic<E>;
  const int64_t blocks = ceil_div(args.pixels, kColumns), image = unit / blocks;
  const int64_t first = (unit - image * blocks) * kColumns, channels = args.channels;
  const int count = static_cast<int>(std::min<int64_t>(kColumns, args.pixels - first));
  const int64_t at = image * channels * args.pixels + first, pixel = image * args.pixels + first;
  const Columns<E> f(args.features, at, args, count), r(args.reference, at, args, count);
  const auto gap = [&](int64_t c, int k) { return f.unit(c, k) - r.unit(c, k); };
  if (args.distance) {
    const auto term = [&](int64_t c, int k) {
      return weight_of<T>(args, c) * gap(c, k) * gap(c, k);
    };
    sum_channels(channels, count, term, static_cast<T*>(args.distance) + pixel);
    return;
  }
  const T* upstream = static_cast<const T*>(args.upstream) + pixel;
  const auto pulled = [&](int64_t c, int k) {
    return pull(weight_of<T>(args, c), upstream[k], gap(c, k));
  };
  const auto back = [&](int64_t c, int k) { return -pulled(c, k); };
  if (args.grad_features) {
    return_to(f, channels, count, pulled, static_cast<E*>(args.grad_features) + at);
  }
  if (args.grad_reference) {
    return_to(r, channels, count, back, static_cast<E*>(args.grad_reference) + at);
  }
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(perceptual)(const PerceptualArgs& args, int64_t begin, int64_t end) {
  dispatch(args.dtype, [&](auto tag) {
    for (int64_t unit = begin; unit < end; ++unit) compare_block<decltype(tag)>(args, unit);
  });
}

}  // namespace robustcore::attacks
