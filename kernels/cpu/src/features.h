// What this CPU and its operating system can execute, by the compiler's own names.
#pragma once

#include <string>
#include <vector>

namespace hal::cpu {

std::vector<std::string> features();

// True if every function declared in kernels.h but those named *_amx is compiled in and this CPU
// can run it.
bool has_avx512_bf16_kernels();

// The same of those named *_amx. The first call asks the operating system for the tiles.
bool has_amx_kernels();

}  // namespace hal::cpu
