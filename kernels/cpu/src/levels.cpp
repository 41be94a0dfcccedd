#include "levels.h"

namespace hal::cpu {

// No CPU with AVX2 and FMA is without F16C, which the compilers' probes do not all know.
std::vector<Level> levels() {
    std::vector<Level> found;
#if defined(HAL_HAS_AVX2)
    found.push_back({"avx2", {"avx2", "fma"}, &kAvx2Kernels});
#endif
#if defined(HAL_HAS_AVX512F)
    found.push_back({"avx512", {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, &kAvx512fKernels});
#endif
#if defined(HAL_HAS_NEON)
    found.push_back({"neon", {"neon"}, &kNeonKernels});
#endif
#if defined(HAL_HAS_DOTPROD)
    found.push_back({"neon_dotprod", {"neon", "dotprod"}, &kDotprodKernels});
#endif
    return found;
}

}  // namespace hal::cpu
