#include "counters.h"

#include <atomic>

namespace hal::cpu {
namespace {

std::atomic<int64_t> barriers{0};
std::atomic<int64_t> scratch_allocations{0};

}  // namespace

void count_barrier() { barriers.fetch_add(1, std::memory_order_relaxed); }

int64_t num_barriers() { return barriers.load(std::memory_order_relaxed); }

void count_scratch_allocation() { scratch_allocations.fetch_add(1, std::memory_order_relaxed); }

int64_t num_scratch_allocations() { return scratch_allocations.load(std::memory_order_relaxed); }

}  // namespace hal::cpu
