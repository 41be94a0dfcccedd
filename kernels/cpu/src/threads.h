// Shares of work, and how the pool's threads divide them.
#pragma once

#include "pool.h"

namespace hal::cpu {
namespace {

struct Range {
    int64_t begin;
    int64_t end;
};

// Part `index` of `parts` equal shares of [0, count).
inline Range share(int64_t count, int64_t index, int64_t parts) {
    return {count * index / parts, count * (index + 1) / parts};
}

// Into how many chunks to cut `count` units of work: some for each thread, so that one which is late
// leaves most of its own to the others.
inline int64_t chunks_for(int num_threads, int64_t count) {
    constexpr int64_t kChunksPerThread = 4;
    const int64_t most = num_threads > 1 ? kChunksPerThread * num_threads : 1;
    return count < most ? count : most;
}

// Calls run(range) for ranges that make up [0, count).
template <class F>
inline void for_each_range(int num_threads, int64_t count, const F& run) {
    const int64_t chunks = chunks_for(num_threads, count);
    for_each_chunk(num_threads, chunks,
                   [&](int64_t chunk) { run(share(count, chunk, chunks)); });
}

// Calls run(index) for every index below count, on more than one thread if there is enough to do.
template <class F>
inline void for_each(int num_threads, int64_t count, bool is_enough, const F& run) {
    for_each_range(is_enough ? num_threads : 1, count, [&](const Range& range) {
        for (int64_t i = range.begin; i < range.end; ++i) run(i);
    });
}

}  // namespace
}  // namespace hal::cpu
