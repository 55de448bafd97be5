// Which of the compiled instruction sets runs: the widest that the processor has, or the one named
// by the environment variable ROBUSTCORE_SIMD. Decided once, when the extension loads.
#pragma once

#include <string>

namespace robustcore {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The first call throws if ROBUSTCORE_SIMD names what is unknown or what this processor lacks.
Isa active_isa();
const char* active_isa_name();

// For tests: runs another variant from now on. Throws if it is unknown, hidden, or not
// in this processor.
void select_isa(const std::string& name);

}  // namespace robustcore
