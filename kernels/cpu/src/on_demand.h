// Work that several threads depend on, in units each of which the first thread that needs it does. A
// thread waits for no more than a unit that another is busy with, and does what is left over first:
// where a product needs its x prepared, that takes the place of a step with a barrier behind it.
#pragma once

#include "arena.h"
#include "pool.h"
#include "threads.h"

namespace hal::cpu {
namespace {

class OnDemand {
  public:
    // The states of `count` units, in memory that stays valid until the owner's next call.
    OnDemand(Arena& arena, int64_t count)
        : count_(count), states_(reinterpret_cast<State*>(arena.reserve(count))) {
        __builtin_memset(states_, kUntouched, size_t(count));
    }

    // Returns when make(unit) has run for all of `units`, here or elsewhere.
    template <class Make>
    void need(const Range& units, const Make& make) const {
        for (int64_t unit = units.begin; unit < units.end; ++unit) {
            if (is_ready(unit) || do_if_untouched(unit, make)) continue;
            for (int64_t next = unit + 1; next < count_ && !is_ready(unit); ++next) {
                do_if_untouched(next, make);
            }
            for (int turns = 0; !is_ready(unit); ++turns) wait_a_turn(turns);
        }
    }

  private:
    using State = uint8_t;
    static constexpr State kUntouched = 0, kBusy = 1, kReady = 2;

    bool is_ready(int64_t unit) const {
        return __atomic_load_n(states_ + unit, __ATOMIC_ACQUIRE) == kReady;
    }
    template <class Make>
    bool do_if_untouched(int64_t unit, const Make& make) const {
        State expected = kUntouched;
        // Looked at first: a compare takes the line from all who wait beside it.
        if (__atomic_load_n(states_ + unit, __ATOMIC_RELAXED) != expected) return false;
        if (!__atomic_compare_exchange_n(states_ + unit, &expected, State(kBusy), false,
                                         __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
            return false;
        }
        make(unit);
        __atomic_store_n(states_ + unit, State(kReady), __ATOMIC_RELEASE);
        return true;
    }

    int64_t count_;
    State* states_;
};

}  // namespace
}  // namespace hal::cpu
