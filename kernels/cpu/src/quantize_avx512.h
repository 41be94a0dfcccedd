// Rounding floats to codes, as hal/weights.py defines it: the same for weights and for x.
#pragma once

#include "simd_avx512.h"

namespace hal::cpu {
namespace {

inline constexpr float kSmallest = 1e-30f;
inline constexpr uint32_t kInfinity = 0x7f800000;

// Floats of a row of any dtype.
struct FloatRow {
    const void* values;
    DType dtype;
    int64_t columns;

    // 16 of them, zeros behind the last.
    __m512 load16(int64_t k) const {
        const __mmask16 mask = k < columns ? tail_mask(columns - k) : __mmask16(0);
        if (dtype == DType::kFloat16) {
            const uint16_t* p = static_cast<const uint16_t*>(values) + k;
            return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
        }
        return load(values, dtype, k, mask);
    }
};

inline float as_float(uint32_t bits) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(int(bits))));
}

// Bits of magnitudes order as the magnitudes do, with infinity and NaN above all numbers.
inline __m512i magnitude_bits(__m512 v) {
    return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}

// A scale of 8-bit codes and its inverse.
struct Scale8 {
    float scale;
    float inverse;
};

inline Scale8 scale8(uint32_t largest_bits) {
    const float largest = as_float(largest_bits);
    if (largest_bits >= kInfinity) return {__builtin_nanf(""), 0.0f};
    if (largest <= kSmallest) return {0.0f, 0.0f};
    return {largest / 127.0f, 127.0f / largest};
}

// 0 for NaN, which is also what an infinity times its inverse of 0 is.
inline __m512i rounded_codes(__m512 v, float inverse) {
    const __m512 scaled = _mm512_mul_ps(v, _mm512_set1_ps(inverse));
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(scaled, scaled, _CMP_ORD_Q), scaled);
}

}  // namespace
}  // namespace hal::cpu
