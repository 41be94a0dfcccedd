// A row of a weight rounded to codes, as hal/weights.py defines them, before any layout.
#pragma once

#include "code_layout.h"
#include "quantize_avx512.h"

namespace hal::cpu {
namespace {

inline uint32_t bits_of(float value) {
    return uint32_t(_mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(value))));
}

struct Scale4 {
    uint32_t bits;  // of the bfloat16 scale, as a float32
    float inverse;
};

// Rounded to nearest even in integers: the instruction would flush a denormal scale.
inline Scale4 scale4(float exact) {
    const uint32_t bits = bits_of(exact);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16 << 16;
    return {rounded, 1.0f / as_float(rounded)};
}

inline void store_codes(uint8_t* to, __m512i codes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(codes));
}

inline uint32_t largest_bits(const FloatRow& row) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t k = 0; k < row.columns; k += kLanes) {
        largest = _mm512_max_epu32(largest, magnitude_bits(row.load16(k)));
    }
    return _mm512_reduce_max_epu32(largest);
}

// Codes -127 to 127 in two's complement, of `padded` columns; false if a value is not finite.
inline bool round8(const FloatRow& row, int64_t padded, const RoundedRow& to) {
    const Scale8 found = scale8(largest_bits(row));
    to.scales[0] = bits_of(found.scale);
    for (int64_t k = 0; k < padded; k += kLanes) {
        store_codes(to.codes + k, rounded_codes(row.load16(k), found.inverse));
    }
    return found.scale == found.scale;
}

// Bits of the nearest e4m3 to each value of magnitude up to 448 and a little.
inline __m512i fp8_codes(__m512 v) {
    const __m512i magnitude = magnitude_bits(v);
    const __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(v), 31);
    // From 2^-6 on the upper bits of a float are those of an e4m3, but for the exponent's bias.
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7ffff));
    const __m512i upper = _mm512_srli_epi32(_mm512_add_epi32(magnitude, half), 20);
    const __m512i normal = _mm512_sub_epi32(upper, _mm512_set1_epi32(120 << 3));
    // Below, an e4m3 counts in steps of 2^-9.
    const __m512 steps = _mm512_mul_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(512.0f));
    const __mmask16 small =
        _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32((127 - 6) << 23));
    const __m512i code = _mm512_mask_cvtps_epi32(normal, small, steps);
    const __m512i held = _mm512_min_epi32(code, _mm512_set1_epi32(0x7e));
    return _mm512_or_si512(held, _mm512_slli_epi32(sign, 7));
}

// The same to e4m3.
inline bool round_fp8(const FloatRow& row, int64_t padded, const RoundedRow& to) {
    const uint32_t bits = largest_bits(row);
    const float largest = as_float(bits);
    const bool finite = bits < kInfinity, zero = !finite || largest <= kSmallest;
    to.scales[0] = zero ? 0 : bits_of(largest / 448.0f);
    const __m512 inverse = _mm512_set1_ps(zero ? 0.0f : 448.0f / largest);
    for (int64_t k = 0; k < padded; k += kLanes) {
        const __m512 value = _mm512_mul_ps(row.load16(k), inverse);
        store_codes(to.codes + k, zero ? _mm512_setzero_si512() : fp8_codes(value));
    }
    return finite;
}

// Scale, inverse and zero point of a group from its largest and least value.
struct Group4 {
    Scale4 scale;
    int zero;
};

inline Group4 symmetric(float high, float low) {
    const float extreme = high >= -low ? high : low;
    if ((extreme < 0 ? -extreme : extreme) <= kSmallest) return {{0, 0.0f}, 8};
    return {scale4(extreme / -8.0f), 8};
}

inline Group4 with_zero(float high, float low) {
    high = high > 0 ? high : 0;
    low = low < 0 ? low : 0;
    if (high - low <= kSmallest) return {{0, 0.0f}, 0};
    const Scale4 scale = scale4(high / 15.0f - low / 15.0f);
    const int zero = _mm_cvtss_si32(_mm_set_ss(-low * scale.inverse));
    return {scale, zero < 15 ? zero : 15};
}

// Codes 0 to 15 of `padded` columns: the code + 8, or + the group's zero point.
inline bool round4(const FloatRow& row, int64_t padded, int64_t group, bool has_zeros,
                   const RoundedRow& to) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t first = 0; first < padded; first += group) {
        const int64_t end = first + group < padded ? first + group : padded;
        __m512 high = row.load16(first), low = high;
        for (int64_t k = first; k < end; k += kLanes) {
            const __m512 v = row.load16(k);
            high = _mm512_max_ps(high, v);
            low = _mm512_min_ps(low, v);
            largest = _mm512_max_epu32(largest, magnitude_bits(v));
        }
        const auto range = has_zeros ? with_zero : symmetric;
        const Group4 found = range(_mm512_reduce_max_ps(high), _mm512_reduce_min_ps(low));
        to.scales[first / group] = found.scale.bits;
        to.zeros[first / group] = uint8_t(found.zero);
        const __m512i zero = _mm512_set1_epi32(found.zero);
        for (int64_t k = first; k < end; k += kLanes) {
            const __m512i code =
                _mm512_add_epi32(rounded_codes(row.load16(k), found.scale.inverse), zero);
            const __m512i floor = _mm512_max_epi32(code, _mm512_setzero_si512());
            store_codes(to.codes + k, _mm512_min_epi32(floor, _mm512_set1_epi32(15)));
        }
    }
    return _mm512_reduce_max_epu32(largest) < kInfinity;
}

}  // namespace
}  // namespace hal::cpu
