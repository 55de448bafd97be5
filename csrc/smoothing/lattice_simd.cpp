#include <cstring>

#include "smoothing/lattice.h"

namespace robustcore::smoothing {
inline namespace RC_ISA {
namespace {

using L = std::conditional_t<std::is_same_v<Lanes, Scalar>, Approximate, Lanes>;

template <Domain kDomain>
void check_buckets(const LatticeCheckArgs& args, int64_t begin, int64_t end) {
  int64_t unsure_count = 0, wrong = 0, k = 0;
  const auto threshold = [&](int64_t i) {
    return static_cast<uint32_t>(args.lattice.thresholds[3 * i]);
  };
  for (int64_t first = begin; first < end; first += L::kFloats) {
    uint32_t words[L::kFloats], unsure;
    for (int i = 0; i < L::kFloats; ++i) words[i] = static_cast<uint32_t>(first + i);
    L::Uint word;
    memcpy(&word, words, sizeof(word));
    float counts[L::kFloats];
    L::store(counts, approximate<kDomain, L>(word, args.lattice.spread, unsure));
    for (int i = 0; i < L::kFloats; ++i) {
      while (k < args.lattice.count && threshold(k) < words[i]) ++k;
      // Thresholds inside the bucket: only more bits can decide.
      const bool split = k < args.lattice.count && threshold(k) == words[i] &&
                         (args.lattice.thresholds[3 * k + 1] | args.lattice.thresholds[3 * k + 2]);
      int64_t count = k;
      while (!split && count < args.lattice.count && threshold(count) == words[i]) ++count;
      if (unsure >> i & 1) {
        ++unsure_count;
        if (split) continue;
        counts[i] = exact_count_near<kDomain>(args.lattice, words[i], counts[i], {});
      }
      wrong += split || counts[i] != static_cast<float>(count);
    }
  }
  __atomic_fetch_add(args.unsure, unsure_count, __ATOMIC_RELAXED);
  __atomic_fetch_add(args.wrong, wrong, __ATOMIC_RELAXED);
}

}  // namespace
}  // namespace RC_ISA

void RC_VARIANT(lattice_check)(const LatticeCheckArgs& args, int64_t begin, int64_t end) {
  const auto run = [&](auto domain) {
    constexpr int64_t kBuckets = int64_t{1} << 20;  // of a unit
    check_buckets<domain()>(args, (args.first + begin) * kBuckets, (args.first + end) * kBuckets);
  };
  if (args.domain == Domain::kLatticeGaussian) {
    run(std::integral_constant<Domain, Domain::kLatticeGaussian>{});
  } else if (args.domain == Domain::kLatticeUniform) {
    run(std::integral_constant<Domain, Domain::kLatticeUniform>{});
  } else {
    run(std::integral_constant<Domain, Domain::kLatticeLaplace>{});
  }
}

}  // namespace robustcore::smoothing
