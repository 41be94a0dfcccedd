// The calling thread's place in the parallel region it is in; one thread where there is no OpenMP.
#pragma once

#include <cstdint>

#include "counters.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace hal::cpu {
namespace {

inline int64_t thread_index() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

inline int64_t thread_count() {
#if defined(_OPENMP)
    return omp_get_num_threads();
#else
    return 1;
#endif
}

// Every thread of the region must come here.
inline void team_barrier() {
    if (thread_index() == 0) count_barrier();
#if defined(_OPENMP)
#pragma omp barrier
#endif
}

}  // namespace
}  // namespace hal::cpu
