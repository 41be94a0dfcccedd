#include "collective.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <new>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hal::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// About 50 us: the ranks of a step come closer together than that, and a sleep costs as much.
constexpr int kSpins = 1500;
// A sleeper looks up that often for a group that failed, or a rank that is late.
constexpr auto kNap = std::chrono::milliseconds(20);
constexpr int64_t kLine = 64;
constexpr int64_t kSummed = 256;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Until `word` is no longer `seen`, or for one nap. The word lies in memory of several processes.
void sleep_while(std::atomic<uint32_t>& word, uint32_t seen) {
#if defined(__linux__)
    const timespec nap{0, std::chrono::nanoseconds(kNap).count()};
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT, seen, &nap, nullptr, 0);
#else
    if (word.load() == seen) std::this_thread::sleep_for(std::chrono::microseconds(50));
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE, INT_MAX, nullptr, nullptr,
            0);
#else
    (void)word;
#endif
}

inline float as_float(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline float widen(float value) { return value; }
inline float widen(Bf16 value) { return as_float(uint32_t(value.bits) << 16); }

inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, Bf16* to) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    to->bits = uint16_t((is_nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
void add_slots(const T* const* slots, int size, int64_t count, T* out) {
    float sums[kSummed];
    for (int64_t begin = 0; begin < count; begin += kSummed) {
        const int64_t n = std::min(kSummed, count - begin);
        const T* first = slots[0] + begin;
        for (int64_t i = 0; i < n; ++i) sums[i] = widen(first[i]);
        for (int rank = 1; rank < size; ++rank) {
            const T* next = slots[rank] + begin;
            for (int64_t i = 0; i < n; ++i) sums[i] += widen(next[i]);
        }
        T* to = out + begin;
        for (int64_t i = 0; i < n; ++i) narrow(sums[i], to + i);
    }
}

struct Columns {
    int64_t first;
    int64_t count;
};

Columns columns_of(int rank, int size, int64_t columns) {
    const int64_t least = columns / size, extra = columns % size;
    return {rank * least + std::min<int64_t>(rank, extra), least + (rank < extra)};
}

}  // namespace

// Each on a cache line of its own.
struct alignas(kLine) Communicator::Arrival {
    std::atomic<uint32_t> exchange;  // the last one that this rank has written its slot for
    std::atomic<uint32_t> sleepers;
};

struct alignas(kLine) Communicator::Header {
    std::atomic<uint32_t> has_failed;
    std::atomic<int32_t> why;
};

static_assert(std::atomic<uint32_t>::is_always_lock_free, "processes share these words");

int64_t Communicator::region_bytes(int size) {
    return kLine * (1 + size) + 2 * kSlotBytes * size;
}

Communicator::Communicator(void* region, int rank, int size, double timeout_s)
    : header_(static_cast<Header*>(region)),
      slots_(static_cast<char*>(region) + kLine * (1 + size)),
      rank_(rank),
      size_(size),
      // With fewer CPUs than ranks the one that is waited for may need this one's.
      spins_(int(std::thread::hardware_concurrency()) >= size ? kSpins : 0),
      timeout_s_(timeout_s) {}

Communicator::Arrival& Communicator::arrival(int rank) const {
    return *reinterpret_cast<Arrival*>(reinterpret_cast<char*>(header_) + kLine * (1 + rank));
}

char* Communicator::slot(int rank, uint32_t exchange) const {
    return slots_ + (2 * rank + (exchange & 1)) * kSlotBytes;
}

int Communicator::failure() const {
    return header_->has_failed.load(std::memory_order_acquire) ? header_->why.load() : kNoFailure;
}

void Communicator::fail(int why) {
    if (failure() != kNoFailure) return;
    header_->why.store(why);
    header_->has_failed.store(1, std::memory_order_release);
    for (int rank = 0; rank < size_; ++rank) wake_all(arrival(rank).exchange);
}

bool Communicator::wait_for(int rank) {
    Arrival& other = arrival(rank);
    // Numbers of exchanges wrap around.
    const auto is_there = [&](uint32_t at) { return int32_t(at - exchange_) >= 0; };
    for (int i = 0; i < spins_; ++i) {
        if (is_there(other.exchange.load(std::memory_order_acquire))) return true;
        relax();
    }
    const auto start = Clock::now();
    while (true) {
        other.sleepers.fetch_add(1);
        const uint32_t at = other.exchange.load();
        const bool is_here = is_there(at);
        const bool has_failed = header_->has_failed.load(std::memory_order_acquire);
        if (!is_here && !has_failed) sleep_while(other.exchange, at);
        other.sleepers.fetch_sub(1);
        if (is_here) return true;
        if (has_failed) return false;
        if (std::chrono::duration<double>(Clock::now() - start).count() > timeout_s_) {
            fail(rank);
            return false;
        }
    }
}

bool Communicator::meet() {
    Arrival& own = arrival(rank_);
    own.exchange.store(exchange_);
    if (own.sleepers.load() > 0) wake_all(own.exchange);
    for (int rank = 0; rank < size_; ++rank) {
        if (rank != rank_ && !wait_for(rank)) return false;
    }
    return true;
}

void Communicator::all_reduce(void* x, int64_t count, DType dtype) {
    const int64_t element = dtype == DType::kFloat32 ? 4 : 2;
    const int64_t step = kSlotBytes / element;
    for (int64_t begin = 0; begin < count && failure() == kNoFailure; begin += step) {
        const int64_t n = std::min(step, count - begin);
        char* part = static_cast<char*>(x) + begin * element;
        ++exchange_;
        std::memcpy(slot(rank_, exchange_), part, size_t(n * element));
        if (!meet()) return;
        const void* slots[kMaxRanks];
        for (int rank = 0; rank < size_; ++rank) slots[rank] = slot(rank, exchange_);
        if (dtype == DType::kFloat32) {
            add_slots(reinterpret_cast<const float* const*>(slots), size_, n,
                      reinterpret_cast<float*>(part));
        } else {
            add_slots(reinterpret_cast<const Bf16* const*>(slots), size_, n,
                      reinterpret_cast<Bf16*>(part));
        }
    }
}

void Communicator::all_gather(const void* own, int64_t rows, int64_t columns, int64_t element,
                              void* out) {
    const int64_t step = kSlotBytes / element;
    const int64_t most = rows * columns_of(0, size_, columns).count;
    for (int64_t begin = 0; begin < most && failure() == kNoFailure; begin += step) {
        ++exchange_;
        const auto part = [&](int64_t total) {
            return std::max<int64_t>(0, std::min(step, total - begin));
        };
        const int64_t mine = part(rows * columns_of(rank_, size_, columns).count);
        if (mine > 0) {
            std::memcpy(slot(rank_, exchange_), static_cast<const char*>(own) + begin * element,
                        size_t(mine * element));
        }
        if (!meet()) return;
        for (int rank = 0; rank < size_; ++rank) {
            const auto [first, width] = columns_of(rank, size_, columns);
            const char* from = slot(rank, exchange_);
            const int64_t end = begin + part(rows * width);
            for (int64_t at = begin; at < end;) {
                const int64_t row = at / width, column = at % width;
                const int64_t n = std::min(width - column, end - at);
                std::memcpy(static_cast<char*>(out) + (row * columns + first + column) * element,
                            from + (at - begin) * element, size_t(n * element));
                at += n;
            }
        }
    }
}

void Communicator::broadcast(void* x, int64_t bytes, int root) {
    for (int64_t begin = 0; begin < bytes && failure() == kNoFailure; begin += kSlotBytes) {
        const size_t n = size_t(std::min(kSlotBytes, bytes - begin));
        char* part = static_cast<char*>(x) + begin;
        ++exchange_;
        if (rank_ == root) std::memcpy(slot(root, exchange_), part, n);
        if (!meet()) return;
        if (rank_ != root) std::memcpy(part, slot(root, exchange_), n);
    }
}

void all_reduce(const AllReduceArgs& args) {
    args.group->all_reduce(args.x, args.count, args.dtype);
}

void all_gather(const AllGatherArgs& args) {
    args.group->all_gather(args.own, args.rows, args.columns, args.element, args.out);
}

}  // namespace hal::cpu
