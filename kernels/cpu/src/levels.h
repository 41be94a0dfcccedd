// The instruction sets that the portable kernels are compiled for, beside those of kernels.h.
#pragma once

#include <string>
#include <vector>

#include "level.h"

namespace hal::cpu {

// needs: what a CPU must have to run it, as features() names it.
struct Level {
    std::string name;
    std::vector<std::string> needs;
    const LevelKernels* kernels;
};

// Those compiled into this build, whether or not this CPU runs them.
std::vector<Level> levels();

}  // namespace hal::cpu
