// The one pool of threads behind all kernels. A parallel step is cut into chunks; each thread starts
// with its own share of them, neighbours in memory, and helps the others when that is done. So a
// thread whose core is busy with something else costs what it holds, one chunk, and not the step:
// with shares that cannot move, two processes on one machine fell to a tenth of their speed.
#pragma once

#include <cstdint>
#include <vector>

namespace hal::cpu {

using RunChunk = void (*)(const void* context, int64_t chunk);

// Calls run(context, chunk) once for every chunk below num_chunks, on up to num_threads threads,
// the caller's among them, and returns when all have returned. Chunks must not depend on each
// other. Safe from several threads, which take turns, and after a fork; not from inside a chunk.
void run_chunks(int num_threads, int64_t num_chunks, RunChunk run, const void* context);

// Passes the time of one look at what another thread is about to finish: `turns` is how many there
// were before. Many of them give the core to whoever needs it.
void wait_a_turn(int turns);

// From now on thread i + 1 of the pool runs on cpus[i] only, in this process and its forks; further
// threads, and the caller's, stay where the system puts them. Starts those threads. 0, or the errno
// of the first thread that could not be bound.
int bind_threads(const std::vector<std::vector<int>>& cpus);

// Writes a zero to each page of the memory, part i of num_threads equal ones by the pool's thread i:
// a page lies on the memory node of the thread that first wrote to it.
void touch_pages(char* memory, int64_t bytes, int num_threads);

namespace {

// Internal linkage, so that every file has a copy compiled for its own instruction set.
template <class F>
inline void for_each_chunk(int num_threads, int64_t num_chunks, const F& run) {
    run_chunks(
        num_threads, num_chunks,
        [](const void* context, int64_t chunk) { (*static_cast<const F*>(context))(chunk); }, &run);
}

}  // namespace
}  // namespace hal::cpu
