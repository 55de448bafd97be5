#include <cstring>

#include "lipschitz/pairs.h"

namespace robustcore::lipschitz {
inline namespace RC_ISA {
namespace {

// Calls body(i, numbers) for pairs [first, last) of a row; `numbers` are those of pair i's channel.
template <class M, class T, class Body>
RC_HOST_DEVICE void for_each_pair(const PairShape& shape, const void* table_data, int64_t first,
                                  int64_t last, const Body& body) {
  const T* table = static_cast<const T*>(table_data);
  const int64_t channels = shape.channels;
  T k[M::kEntries];
  if (shape.pixels == 1) {
#pragma GCC ivdep
    for (int64_t i = first; i < last; ++i) {
      T own[M::kEntries];
      for (int j = 0; j < M::kEntries; ++j) own[j] = table[j * channels + i];
      body(i, own);
    }
    return;
  }
  for (int64_t i = first; i < last;) {
    const int64_t c = i / shape.pixels;
    const int64_t stop = (c + 1) * shape.pixels < last ? (c + 1) * shape.pixels : last;
    for (int j = 0; j < M::kEntries; ++j) k[j] = table[j * channels + c];
#pragma GCC ivdep
    for (; i < stop; ++i) body(i, k);
  }
}

template <class M>
void map_units(const MapArgs& args, int64_t begin, int64_t end) {
  const PairShape& shape = args.shape;
  const int64_t run = shape.run();
  dispatch(shape.dtype, [&](auto tag) {
    using E = decltype(tag);
    using T = Arithmetic<E>;
    PairTiling(shape).for_each(shape, begin, end, [&](int64_t row, int64_t first, int64_t last) {
      const E* x = static_cast<const E*>(args.x) + row * 2 * run;
      E* out = static_cast<E*>(args.out) + row * M::kOutputs * run;
      for_each_pair<M, T>(shape, args.table, first, last, [&](int64_t i, const T* k) {
        T v[M::kOutputs];
        M::forward(k, convert<T>(x[i]), convert<T>(x[run + i]), v);
        for (int j = 0; j < M::kOutputs; ++j) out[j * run + i] = convert<E>(v[j]);
      });
    });
  });
}

template <class M>
void map_backward_units(const MapBackwardArgs& args, int64_t begin, int64_t end) {
  const PairShape& shape = args.shape;
  const int64_t run = shape.run();
  dispatch(shape.dtype, [&](auto tag) {
    using E = decltype(tag);
    using T = Arithmetic<E>;
    PairTiling(shape).for_each(shape, begin, end, [&](int64_t row, int64_t first, int64_t last) {
      const E* x = static_cast<const E*>(args.x) + row * 2 * run;
      const E* grad = static_cast<const E*>(args.grad) + row * M::kOutputs * run;
      E* grad_x = static_cast<E*>(args.grad_x) + row * 2 * run;
      E* grad_angle = static_cast<E*>(args.grad_angle) + row * M::kAngles * run;
      for_each_pair<M, T>(shape, args.table, first, last, [&](int64_t i, const T* k) {
        T g[M::kOutputs], v[2], angle[M::kAngles];
        for (int j = 0; j < M::kOutputs; ++j) g[j] = convert<T>(grad[j * run + i]);
        M::backward(k, convert<T>(x[i]), convert<T>(x[run + i]), g, v, angle);
        grad_x[i] = convert<E>(v[0]);
        grad_x[run + i] = convert<E>(v[1]);
        for (int j = 0; j < M::kAngles; ++j) grad_angle[j * run + i] = convert<E>(angle[j]);
      });
    });
  });
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(maxmin)(const MaxMinArgs& args, int64_t begin, int64_t end) {
  const PairShape& shape = args.shape;
  const int64_t run = shape.run();
  dispatch(shape.dtype, [&](auto tag) {
    using E = decltype(tag);
    PairTiling(shape).for_each(shape, begin, end, [&](int64_t row, int64_t first, int64_t last) {
      const E* x = static_cast<const E*>(args.x) + row * 2 * run;
      E* out = static_cast<E*>(args.out) + row * 2 * run;
      uint8_t* bits = args.bits + row * shape.bytes();
      int64_t i = first;
      if constexpr (std::is_same_v<E, float> && Lanes::kFloats >= 8) {
        for (; i + Lanes::kFloats <= last; i += Lanes::kFloats) {
          const auto a = Lanes::load(x + i), b = Lanes::load(x + run + i);
          const uint32_t keep = ~Lanes::less_mask(a, b);
          Lanes::store(out + i, Lanes::blend(keep, b, a));
          Lanes::store(out + run + i, Lanes::blend(keep, a, b));
          memcpy(bits + i / 8, &keep, Lanes::kFloats / 8);
        }
      }
      for (; i < last; i += 8) {
        uint8_t byte = 0;
        for (int64_t j = i; j < last && j < i + 8; ++j) {
          const E a = x[j], b = x[run + j];
          using T = Arithmetic<E>;
          const bool keep = !(convert<T>(a) < convert<T>(b));
          out[j] = keep ? a : b;
          out[run + j] = keep ? b : a;
          byte |= static_cast<uint8_t>(keep << (j - i));
        }
        bits[i / 8] = byte;
      }
    });
  });
}

void RC_VARIANT(swap)(const SwapArgs& args, int64_t begin, int64_t end) {
  const PairShape& shape = args.shape;
  const int64_t run = shape.run();
  dispatch(shape.dtype, [&](auto tag) {
    using E = decltype(tag);
    PairTiling(shape).for_each(shape, begin, end, [&](int64_t row, int64_t first, int64_t last) {
      const E* x = static_cast<const E*>(args.x) + row * 2 * run;
      E* out = static_cast<E*>(args.out) + row * 2 * run;
      const uint8_t* bits = args.bits + row * shape.bytes();
      int64_t i = first;
      if constexpr (std::is_same_v<E, float> && Lanes::kFloats >= 8) {
        for (; i + Lanes::kFloats <= last; i += Lanes::kFloats) {
          uint32_t keep = 0;
          memcpy(&keep, bits + i / 8, Lanes::kFloats / 8);
          const auto a = Lanes::load(x + i), b = Lanes::load(x + run + i);
          Lanes::store(out + i, Lanes::blend(keep, b, a));
          Lanes::store(out + run + i, Lanes::blend(keep, a, b));
        }
      }
      for (; i < last; ++i) {
        const bool keep = bits[i / 8] >> (i % 8) & 1;
        const E a = x[i], b = x[run + i];
        out[i] = keep ? a : b;
        out[run + i] = keep ? b : a;
      }
    });
  });
}

void RC_VARIANT(pair_map)(const MapArgs& args, int64_t begin, int64_t end) {
  dispatch_map(args.map, [&](auto map) { map_units<decltype(map)>(args, begin, end); });
}

void RC_VARIANT(pair_map_backward)(const MapBackwardArgs& args, int64_t begin, int64_t end) {
  dispatch_map(args.map, [&](auto map) { map_backward_units<decltype(map)>(args, begin, end); });
}

}  // namespace robustcore::lipschitz
