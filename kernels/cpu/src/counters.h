// What the kernels of a step cost besides their work, counted since the process began, so that tests
// can hold a step to its numbers.
#pragma once

#include <cstdint>

namespace hal::cpu {

// How often threads waited for each other.
void count_barrier();
int64_t num_barriers();

// How often scratch memory had to grow.
void count_scratch_allocation();
int64_t num_scratch_allocations();

}  // namespace hal::cpu
