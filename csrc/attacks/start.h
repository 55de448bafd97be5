// Where attacks begin: noise of rows that name their images themselves.
//
// Element e of a row has the word of element e of the stream (common/stream.h), domain
// kAttackStart, with the row's image and sample. Version 1; it never changes within a major
// version.
#pragma once

#include "common/math.h"
#include "common/stream.h"
#include "common/strided.h"
#include "common/variants.h"

namespace robustcore::attacks {

// Standard normal numbers, or uniform ones on [-1, 1] in centred steps of 2^-31, as float32.
struct StartArgs {
  int64_t rows, elements;
  const int64_t *images, *samples;  // [rows]
  uint64_t seed;
  bool normal;
  void* out;  // [rows, elements]
  DType dtype;
};

// A unit is a row.
RC_VARIANTS(start_noise, const StartArgs& args, int64_t begin, int64_t end);
void start_noise_cuda(const StartArgs& args, void* stream);

inline namespace RC_ISA {

RC_HOST_DEVICE PhiloxRow start_row(const StartArgs& args, const PhiloxKey& key, int64_t row) {
  return stream_row(key, Domain::kAttackStart, args.images[row], args.samples[row]);
}

// The noise of the L::kElements elements from `first` on, a multiple of four.
template <class L>
RC_HOST_DEVICE void start_step(const StartArgs& args, const PhiloxRow& row,
                               const PhiloxKeys<L>& keys, int64_t first,
                               typename L::Float (&z)[L::kVectors]) {
  using Float = typename L::Float;
  using Uint = typename L::Uint;
  using Int = typename L::Int;
  const auto column = philox_column<L>(L::counters(static_cast<uint32_t>(first / 4)));
  if (args.normal) {
    words_in_order<L>(row, column, keys, z,
                      [](Uint r, Uint t, Float& a, Float& b) { box_muller<L>(r, t, a, b); });
    return;
  }
  words_in_order<L>(row, column, keys, z, [](Uint r, Uint t, Float& a, Float& b) {
    a = L::fma(L::from_int(L::template as<Int>(r)), L::splat(0x1p-31f), L::splat(0x1p-32f));
    b = L::fma(L::from_int(L::template as<Int>(t)), L::splat(0x1p-31f), L::splat(0x1p-32f));
  });
}

}  // namespace RC_ISA
}  // namespace robustcore::attacks
