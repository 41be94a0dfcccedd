// The calling thread's place in the parallel region it is in, and its share of the work; one thread
// where there is no OpenMP.
#pragma once

#include <cstdint>

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

struct Range {
    int64_t begin;
    int64_t end;
};

// Part `index` of `parts` equal shares of [0, count).
inline Range share(int64_t count, int64_t index, int64_t parts) {
    return {count * index / parts, count * (index + 1) / parts};
}

}  // namespace
}  // namespace hal::cpu
