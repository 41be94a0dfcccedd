// Ceilings of this machine, measured: bytes read per second, VNNI and BF16 operations per second.
//   machine THREADS MIB [read]  ->  {"read_gb_s": ..., "vnni_tops": ..., "bf16_tflops": ...}, null = absent;
//   with "read" only the first
#include <immintrin.h>
#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace {

constexpr int kRuns = 20;
constexpr int kChains = 16;  // independent sums: enough to hide the latency of a dot product
volatile int64_t g_sink;     // keeps results alive

// Two threads on one core would halve every ceiling.
void pin_to_core(int index) {
    cpu_set_t allowed, one;
    sched_getaffinity(0, sizeof allowed, &allowed);
    int core = -1;
    for (int seen = -1; seen < index && core + 1 < CPU_SETSIZE;) seen += CPU_ISSET(++core, &allowed);
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof one, &one);
}

double seconds_of(int threads, const std::function<void(int)>& work) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
        pool.emplace_back([&work, t] {
            pin_to_core(t);
            work(t);
        });
    }
    for (auto& thread : pool) thread.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best run: a ceiling is what the machine can do, not what it usually does.
double least_seconds(int threads, const std::function<void(int)>& work) {
    double least = seconds_of(threads, work);
    for (int run = 1; run < kRuns; ++run) least = std::min(least, seconds_of(threads, work));
    return least;
}

// Fetching ahead of the hardware's prefetchers, which stop at the end of every page.
constexpr int64_t kAhead = 4096;

__attribute__((target("avx512f"))) void read_avx512(const char* from, int64_t bytes) {
    __m512i sum[4] = {};
    for (int64_t i = 0; i < bytes; i += 256)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            _mm_prefetch(from + i + 64 * j + kAhead, _MM_HINT_T0);
            sum[j] = _mm512_xor_si512(sum[j], _mm512_load_si512(from + i + 64 * j));
        }
    g_sink = _mm512_reduce_add_epi64(sum[0]) + _mm512_reduce_add_epi64(sum[1]) +
             _mm512_reduce_add_epi64(sum[2]) + _mm512_reduce_add_epi64(sum[3]);
}

void read_plain(const char* from, int64_t bytes) {
    int64_t sum[4] = {}, part[4];
    for (int64_t i = 0; i < bytes; i += 32) {
        std::memcpy(part, from + i, 32);
        for (int j = 0; j < 4; ++j) sum[j] ^= part[j];
    }
    g_sink = sum[0] + sum[1] + sum[2] + sum[3];
}

__attribute__((target("avx512f,avx512vnni"))) void vnni(int64_t rounds) {
    __m512i sum[kChains] = {};
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < kChains; ++j) {
            sum[j] = _mm512_dpbusd_epi32(sum[j], a, b);
            asm volatile("" : "+v"(sum[j]));
        }
#pragma GCC unroll 16
    for (auto& s : sum) g_sink = _mm512_reduce_add_epi32(s);
}

__attribute__((target("avx512f,avx512bf16"))) void bf16(int64_t rounds) {
    __m512 sum[kChains] = {};
    const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = a;
    for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < kChains; ++j) {
            sum[j] = _mm512_dpbf16_ps(sum[j], a, b);
            asm volatile("" : "+v"(sum[j]));
        }
#pragma GCC unroll 16
    for (auto& s : sum) g_sink = (int64_t)_mm512_reduce_add_ps(s);
}

double read_gb_s(int threads, int64_t bytes) {
    const int64_t share = bytes / threads / 4096 * 4096;
    auto* data = static_cast<char*>(std::aligned_alloc(1 << 21, share * threads));
    madvise(data, share * threads, MADV_HUGEPAGE);
    seconds_of(threads, [=](int t) { std::memset(data + t * share, 1, share); });
    const auto read = __builtin_cpu_supports("avx512f") ? read_avx512 : read_plain;
    const double seconds = least_seconds(threads, [=](int t) { read(data + t * share, share); });
    std::free(data);
    return share * threads / seconds / 1e9;
}

double tera_operations(int threads, int per_dot, void (*work)(int64_t)) {
    constexpr int64_t kRounds = 10'000'000;
    const double seconds = least_seconds(threads, [=](int) { work(kRounds); });
    return 2.0 * per_dot * kRounds * kChains * threads / seconds / 1e12;
}

void print(const char* name, bool is_there, const std::function<double()>& measure, char end) {
    if (is_there)
        std::printf("\"%s\": %.4f%c", name, measure(), end);
    else
        std::printf("\"%s\": null%c", name, end);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const bool reads_only = argc > 3;
    const int threads = std::atoi(argv[1]);
    const int64_t bytes = std::atoll(argv[2]) << 20;
    __builtin_cpu_init();
    const bool has_vnni = __builtin_cpu_supports("avx512vnni");
    const bool has_bf16 = __builtin_cpu_supports("avx512bf16");
    std::putchar('{');
    print("read_gb_s", true, [=] { return read_gb_s(threads, bytes); }, reads_only ? '}' : ',');
    if (reads_only) return 0;
    print("vnni_tops", has_vnni, [=] { return tera_operations(threads, 64, vnni); }, ',');
    print("bf16_tflops", has_bf16, [=] { return tera_operations(threads, 32, bf16); }, '}');
    std::putchar('\n');
}
