#include "lipschitz/skew.h"

namespace robustcore::lipschitz {

void RC_VARIANT(skew)(const SkewArgs& args, int64_t begin, int64_t end) {
  const int64_t n = args.channels, taps = args.taps;
  dispatch(args.dtype, [&](auto tag) {
    using E = decltype(tag);
    using T = Arithmetic<E>;
    const E* weight = static_cast<const E*>(args.weight);
    E* out = static_cast<E*>(args.out);
    const int64_t o1 = end * kSkewRun < n ? end * kSkewRun : n;
    for (int64_t o0 = begin * kSkewRun; o0 < o1; o0 += kSkewRun) {
      const int64_t o_end = o0 + kSkewRun < o1 ? o0 + kSkewRun : o1;
      for (int64_t i0 = 0; i0 < n; i0 += kSkewRun) {
        const int64_t i_end = i0 + kSkewRun < n ? i0 + kSkewRun : n;
        for (int64_t o = o0; o < o_end; ++o) {
          for (int64_t i = i0; i < i_end; ++i) {
            const E* p = weight + (o * n + i) * taps;
            const E* q = weight + (i * n + o) * taps + taps - 1;
            E* r = out + (o * n + i) * taps;
            for (int64_t t = 0; t < taps; ++t) {
              r[t] = convert<E>((convert<T>(p[t]) - convert<T>(q[-t])) * T(0.5));
            }
          }
        }
      }
    }
  });
}

}  // namespace robustcore::lipschitz
