#include "features.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace hal::cpu {

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
    if (__builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512bf16");
#elif defined(__aarch64__)
    found.emplace_back("neon");
    if (has_dotprod()) found.emplace_back("dotprod");
#endif
    return found;
}

bool has_avx512_bf16_kernels() {
#if defined(HAL_HAS_AVX512)
    // All eight: a CPU with the last has the others, but a hypervisor may hide any of them, and
    // the kernels are compiled with every one.
    return features().size() == 8;
#else
    return false;
#endif
}

}  // namespace hal::cpu
