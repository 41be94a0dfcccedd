#include "pool.h"

#include "counters.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <cerrno>
#include <mutex>
#include <thread>
#include <vector>

namespace hal::cpu {
namespace {

// A wait that long is shorter than the gap between two kernels of a step; after it the thread
// sleeps, since whatever it waits for may need its core.
constexpr int kSpins = 4000;
constexpr int kMaxThreads = 256;
constexpr int64_t kMaxChunks = 0xffff;

using CpuSets = std::vector<std::vector<int>>;

// Of every pool of this process, a forked child's too; never destroyed, like the pools.
CpuSets& bound_cpus() {
    static CpuSets& cpus = *new CpuSets;
    return cpus;
}

int bind(pthread_t thread, const std::vector<int>& cpus) {
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : cpus) {
        if (cpu < 0 || cpu >= CPU_SETSIZE) return EINVAL;
        CPU_SET(cpu, &set);
    }
    return pthread_setaffinity_np(thread, sizeof set, &set);
#else
    (void)thread;
    (void)cpus;
    return ENOSYS;
#endif
}

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Returns when `value` is no longer `old`.
void wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < kSpins; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        relax();
    }
    value.wait(old, std::memory_order_acquire);
}

// The chunks of one thread's share that nobody has taken yet, and the step they belong to, in one
// word: a thread that wakes up late finds another step's number and takes nothing.
class alignas(64) Share {
  public:
    void set(uint32_t step, int64_t begin, int64_t end) {
        word_.store(uint64_t(step) << 32 | uint64_t(begin) << 16 | uint64_t(end),
                    std::memory_order_relaxed);
    }
    // A chunk of that step, or -1.
    int64_t take(uint32_t step) {
        uint64_t word = word_.load(std::memory_order_acquire);
        while (word >> 32 == step && (word >> 16 & 0xffff) < (word & 0xffff)) {
            if (word_.compare_exchange_weak(word, word + 0x10000, std::memory_order_acq_rel)) {
                return int64_t(word >> 16 & 0xffff);
            }
        }
        return -1;
    }

  private:
    std::atomic<uint64_t> word_{0};
};

class Pool {
  public:
    // Without `helps` a thread does its own share only.
    void run(int threads, int64_t chunks, RunChunk run, const void* context, bool helps = true) {
        const std::lock_guard<std::mutex> turn(turn_);
        grow(threads - 1);
        const uint32_t step = step_.load(std::memory_order_relaxed) + 1;
        run_ = run;
        context_ = context;
        left_.store(uint32_t(chunks), std::memory_order_relaxed);
        for (int t = 0; t < threads; ++t) {
            shares_[t].set(step, chunks * t / threads, chunks * (t + 1) / threads);
        }
        threads_.store(threads, std::memory_order_relaxed);
        num_shares_.store(helps ? threads : 1, std::memory_order_relaxed);
        step_.store(step, std::memory_order_release);
        step_.notify_all();
        work(step, 0, threads);
        while (const uint32_t left = left_.load(std::memory_order_acquire)) {
            wait_while(left_, left);
        }
    }

    int bind_workers(const CpuSets& cpus) {
        const std::lock_guard<std::mutex> turn(turn_);
        bound_cpus() = cpus;
        grow(int(cpus.size()));
        int failure = 0;
        for (size_t i = 0; i < cpus.size() && !failure; ++i) failure = bind(workers_[i], cpus[i]);
        return failure;
    }

  private:
    // run_ and context_ are read only with a chunk in hand, so while run() waits for it.
    void work(uint32_t step, int self, int threads) {
        const int num_shares = num_shares_.load(std::memory_order_relaxed);
        for (int i = 0; i < num_shares; ++i) {
            Share& share = shares_[(self + i) % threads];
            for (int64_t chunk; (chunk = share.take(step)) >= 0;) {
                run_(context_, chunk);
                if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
            }
        }
    }

    void serve(int self) {
        for (uint32_t seen = 0;;) {
            wait_while(step_, seen);
            seen = step_.load(std::memory_order_acquire);
            const int threads = threads_.load(std::memory_order_relaxed);
            if (self < threads) work(seen, self, threads);
        }
    }

    void grow(int workers) {
        while (int(workers_.size()) < workers) {
            const size_t index = workers_.size();
            std::thread worker(&Pool::serve, this, int(index) + 1);
            workers_.push_back(worker.native_handle());
            worker.detach();
            // In a forked child: these CPUs were accepted when they were set.
            if (index < bound_cpus().size()) bind(workers_.back(), bound_cpus()[index]);
        }
    }

    std::mutex turn_;
    std::vector<pthread_t> workers_;  // they never end, so their handles stay valid
    RunChunk run_ = nullptr;
    const void* context_ = nullptr;
    Share shares_[kMaxThreads];
    alignas(64) std::atomic<int> threads_{0};
    std::atomic<int> num_shares_{0};
    alignas(64) std::atomic<uint32_t> step_{0};
    alignas(64) std::atomic<uint32_t> left_{0};
};

Pool* g_pool = nullptr;

// Threads do not survive a fork: the child begins with a pool of its own, and leaves the other as
// it stood. Nothing is ever destroyed, because workers may outlive static objects.
void renew() { g_pool = new Pool; }

Pool& pool() {
    static const bool is_set = [] {
        renew();
        return pthread_atfork(nullptr, nullptr, renew) == 0;
    }();
    (void)is_set;
    return *g_pool;
}

}  // namespace

void wait_a_turn(int turns) {
    if (turns < kSpins) {
        relax();
    } else {
        std::this_thread::yield();
    }
}

void run_chunks(int num_threads, int64_t num_chunks, RunChunk run, const void* context) {
    const int64_t most = num_threads < kMaxThreads ? num_threads : kMaxThreads;
    const int threads = int(num_chunks < most ? num_chunks : most);
    if (threads <= 1 || num_chunks > kMaxChunks) {
        for (int64_t chunk = 0; chunk < num_chunks; ++chunk) run(context, chunk);
        return;
    }
    count_barrier();
    pool().run(threads, num_chunks, run, context);
}

int bind_threads(const CpuSets& cpus) {
    return cpus.size() < kMaxThreads ? pool().bind_workers(cpus) : EINVAL;
}

void touch_pages(char* memory, int64_t bytes, int num_threads) {
    constexpr int64_t kPage = 4096;  // the smallest there is
    const int threads = num_threads < kMaxThreads ? num_threads : kMaxThreads;
    const auto touch = [=](int64_t part) {
        const int64_t end = bytes * (part + 1) / threads;
        for (int64_t i = bytes * part / threads; i < end; i += kPage) {
            *const_cast<volatile char*>(memory + i) = 0;
        }
    };
    using Touch = decltype(touch);
    const RunChunk run = [](const void* context, int64_t part) {
        (*static_cast<const Touch*>(context))(part);
    };
    pool().run(threads, threads, run, &touch, false);
}

}  // namespace hal::cpu
