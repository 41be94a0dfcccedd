#include "features.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace hal::cpu {
namespace {

#if defined(HAL_HAS_AMX)
// Linux gives the tiles, whose 8 KiB it must save at each switch, to processes that ask: this one's
// threads, those to come as well, may then use them.
bool may_use_tiles() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}
#endif

#if defined(HAL_HAS_AVX512)
bool has_avx512_bf16() {
    __builtin_cpu_init();
    // All eight: a CPU with the last has the others, but a hypervisor may hide any of them, and
    // the kernels are compiled with every one.
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

}  // namespace

#if defined(__aarch64__)
namespace {

bool has_dotprod() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#else
    return false;
#endif
}

}  // namespace
#endif

// The builtin takes literals only, and knows whether the operating system saves the registers.
std::vector<std::string> features() {
    std::vector<std::string> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2");
    if (__builtin_cpu_supports("fma")) found.emplace_back("fma");
    if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512f");
    if (__builtin_cpu_supports("avx512bw")) found.emplace_back("avx512bw");
    if (__builtin_cpu_supports("avx512vl")) found.emplace_back("avx512vl");
    if (__builtin_cpu_supports("avx512dq")) found.emplace_back("avx512dq");
    if (__builtin_cpu_supports("avx512vnni")) found.emplace_back("avx512vnni");
    if (__builtin_cpu_supports("avx512vbmi")) found.emplace_back("avx512vbmi");
    if (__builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512bf16");
#if defined(HAL_HAS_AVXVNNI)  // as of AMX below
    if (__builtin_cpu_supports("avxvnni")) found.emplace_back("avxvnni");
#endif
#if defined(HAL_HAS_AMX)  // a compiler that has the instructions knows their names
    if (__builtin_cpu_supports("amx-tile")) found.emplace_back("amx-tile");
    if (__builtin_cpu_supports("amx-int8")) found.emplace_back("amx-int8");
    if (__builtin_cpu_supports("amx-bf16")) found.emplace_back("amx-bf16");
#endif
#elif defined(__aarch64__)
    found.emplace_back("neon");
    if (has_dotprod()) found.emplace_back("dotprod");
#endif
    return found;
}

bool has_avx512_bf16_kernels() {
#if defined(HAL_HAS_AVX512)
    return has_avx512_bf16();
#else
    return false;
#endif
}

bool has_amx_kernels() {
#if defined(HAL_HAS_AMX)
    static const bool is_usable =
        has_avx512_bf16() && __builtin_cpu_supports("amx-tile") &&
        __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
        may_use_tiles();
    return is_usable;
#else
    return false;
#endif
}

}  // namespace hal::cpu
