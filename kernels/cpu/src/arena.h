// Scratch memory that grows to the largest request and is then reused: no allocation in a steady
// step. Each thread holds its own.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "counters.h"

namespace hal::cpu {
namespace {

// A request never gets more than it asked for where AddressSanitizer watches the end of it.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kExactArena = true;
#else
inline constexpr bool kExactArena = false;
#endif

class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { std::free(memory_); }

    // Contents are not kept across calls.
    char* reserve(int64_t bytes) {
        if (bytes > capacity_ || kExactArena) {
            count_scratch_allocation();
            std::free(memory_);
            capacity_ = kExactArena ? bytes : (bytes + 4095) / 4096 * 4096;
            void* memory = nullptr;
            const int error = posix_memalign(&memory, 64, size_t(capacity_));
            if (error != 0) std::abort();  // out of memory inside a parallel region
            memory_ = static_cast<char*>(memory);
        }
        return memory_;
    }

  private:
    char* memory_ = nullptr;
    int64_t capacity_ = 0;
};

}  // namespace
}  // namespace hal::cpu
