// What this CPU and its operating system can execute, by the compiler's own names.
#pragma once

#include <string>
#include <vector>

namespace hal::cpu {

std::vector<std::string> features();

// True if every function declared in kernels.h is compiled in and this CPU can run it.
bool has_avx512_bf16_kernels();

}  // namespace hal::cpu
