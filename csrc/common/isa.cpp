#include "common/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace robustcore {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

bool has(Isa isa) {
#if defined(RC_HAVE_X86)
  switch (isa) {
    case Isa::kBaseline:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::kBaseline;
}

// The instruction set of this name; `what` begins the message where there is none to run.
Isa find(const std::string& what, const std::string& name, Isa widest) {
  for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512}) {
    if (name != kNames[static_cast<int>(isa)]) continue;
    if (!has(isa)) throw std::invalid_argument(what + ": this processor cannot run '" + name + "'");
    if (isa > widest) throw std::invalid_argument(what + ": ROBUSTCORE_SIMD hides '" + name + "'");
    return isa;
  }
  throw std::invalid_argument(what + ": got '" + name + "', want baseline, avx2 or avx512");
}

// What the environment allows, else all that the processor has. A wider one stays out of reach of
// select_isa() too, so tests under the variable see what a processor without it does.
Isa widest() {
  static const Isa isa = [] {
    const char* wanted = std::getenv("ROBUSTCORE_SIMD");
    if (wanted && *wanted) return find("ROBUSTCORE_SIMD", wanted, Isa::kAvx512);
    return has(Isa::kAvx512) ? Isa::kAvx512 : has(Isa::kAvx2) ? Isa::kAvx2 : Isa::kBaseline;
  }();
  return isa;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{widest()};
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
  active().store(find("name", name, widest()));
}

}  // namespace robustcore
