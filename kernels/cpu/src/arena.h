// Scratch memory that grows to the largest request and is then reused: no allocation in a steady
// step. Each thread holds its own.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "counters.h"

namespace hal::cpu {
namespace {

class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { std::free(memory_); }

    // Contents are not kept across calls.
    char* reserve(int64_t bytes) {
        if (bytes > capacity_) {
            count_scratch_allocation();
            std::free(memory_);
            capacity_ = (bytes + 4095) / 4096 * 4096;
            memory_ = static_cast<char*>(std::aligned_alloc(64, size_t(capacity_)));
            if (memory_ == nullptr) std::abort();  // out of memory inside a parallel region
        }
        return memory_;
    }

  private:
    char* memory_ = nullptr;
    int64_t capacity_ = 0;
};

}  // namespace
}  // namespace hal::cpu
