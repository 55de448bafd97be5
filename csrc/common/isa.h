// Which of the compiled instruction sets runs; decided once, when the extension loads.
#pragma once

#include <string>

namespace robustcore {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa active_isa();
const char* active_isa_name();

// For tests: runs another variant from now on. Throws if it is unknown or this processor lacks it.
void select_isa(const std::string& name);

}  // namespace robustcore
