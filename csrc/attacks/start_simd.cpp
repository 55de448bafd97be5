#include "attacks/start.h"

namespace robustcore::attacks {

void RC_VARIANT(start_noise)(const StartArgs& args, int64_t begin, int64_t end) {
  const PhiloxKey key = philox_key(args.seed);
  const PhiloxKeys<Lanes> keys(key);
  dispatch(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    for (int64_t at = begin; at < end; ++at) {
      const PhiloxRow row = start_row(args, key, at);
      E* const out = static_cast<E*>(args.out) + at * args.elements;
      for (int64_t first = 0; first < args.elements; first += Lanes::kElements) {
        Lanes::Float z[Lanes::kVectors];
        start_step<Lanes>(args, row, keys, first, z);
        float values[Lanes::kElements];
        for (int v = 0; v < Lanes::kVectors; ++v) Lanes::store(values + v * Lanes::kFloats, z[v]);
        const int64_t left = args.elements - first;
        const int count = static_cast<int>(left < Lanes::kElements ? left : Lanes::kElements);
        for (int i = 0; i < count; ++i) out[first + i] = convert<E>(values[i]);
      }
    }
  });
}

}  // namespace robustcore::attacks
