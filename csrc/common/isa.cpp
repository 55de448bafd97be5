#include "common/isa.h"

#include <atomic>
#include <stdexcept>

namespace robustcore {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

bool supported(Isa isa) {
#if defined(RC_HAVE_X86)
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return supported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::kBaseline;
}

Isa best() {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (supported(isa)) return isa;
  }
  return Isa::kBaseline;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

Isa active_isa() {
  return active().load(std::memory_order_relaxed);
}

const char* active_isa_name() {
  return kNames[static_cast<int>(active_isa())];
}

void select_isa(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name != kNames[i]) continue;
    if (!supported(static_cast<Isa>(i))) {
      throw std::invalid_argument("name: this processor cannot run '" + name + "'");
    }
    active().store(static_cast<Isa>(i));
    return;
  }
  throw std::invalid_argument("name: got '" + name + "', want baseline, avx2 or avx512");
}

}  // namespace robustcore
