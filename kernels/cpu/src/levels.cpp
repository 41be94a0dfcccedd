#include "levels.h"

namespace hal::cpu {
namespace {

// A level that differs from `kBase` in its dots of codes.
template <const LevelKernels& kBase, void (*kDots)(const QuantizedLinearArgs&)>
const LevelKernels* with_dots() {
    static const LevelKernels kernels = [] {
        LevelKernels changed = kBase;
        changed.quantized_linear = [](const QuantizedLinearArgs& args) {
            const auto run = args.shape.codes == Codes::kDots ? kDots : kBase.quantized_linear;
            run(args);
        };
        return changed;
    }();
    return &kernels;
}

}  // namespace

// No CPU with AVX2 and FMA is without F16C, which the compilers' probes do not all know.
std::vector<Level> levels() {
    std::vector<Level> found;
    const std::vector<std::string> avx2{"avx2", "fma"};
    const std::vector<std::string> avx512{"avx512f", "avx512bw", "avx512vl", "avx512dq"};
    const auto with = [](std::vector<std::string> needs, const char* feature) {
        needs.emplace_back(feature);
        return needs;
    };
#if defined(HAL_HAS_AVX2)
    found.push_back({"avx2", avx2, &kAvx2Kernels});
#endif
#if defined(HAL_HAS_AVX2) && defined(HAL_HAS_AVXVNNI)
    found.push_back({"avx2_vnni", with(avx2, "avxvnni"),
                     with_dots<kAvx2Kernels, dots_linear_avxvnni>()});
#endif
#if defined(HAL_HAS_AVX512F)
    found.push_back({"avx512", avx512, &kAvx512fKernels});
#endif
#if defined(HAL_HAS_AVX512F) && defined(HAL_HAS_AVX512VNNI)
    found.push_back({"avx512f_vnni", with(avx512, "avx512vnni"),
                     with_dots<kAvx512fKernels, dots_linear_avx512vnni>()});
#endif
#if defined(HAL_HAS_NEON)
    found.push_back({"neon", {"neon"}, &kNeonKernels});
#endif
#if defined(HAL_HAS_DOTPROD)
    found.push_back({"neon_dotprod", {"neon", "dotprod"}, &kDotprodKernels});
#endif
    (void)avx2, (void)avx512, (void)with;
    return found;
}

}  // namespace hal::cpu
