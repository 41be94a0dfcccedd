// The registers of AVX2 with FMA and F16C, as the portable kernels see them: 8 lanes of 32 bits.
// With the dot products of AVX-VNNI where the file is compiled for them. Internal linkage, as in
// simd_avx512.h, because both kinds meet in one module.
#pragma once

#include <immintrin.h>

#include "kernels.h"

namespace hal::cpu {
namespace {

using Floats = __m256;
using Ints = __m256i;
inline constexpr int kWidth = 8;
inline constexpr int kRegisters = 16;
// Tokens whose sums of 16 rows stay in registers.
inline constexpr int kTileTokens = 4;

inline Floats splat(float value) { return _mm256_set1_ps(value); }
inline Ints splat(int32_t value) { return _mm256_set1_epi32(value); }
inline Floats as_floats(Ints v) { return _mm256_castsi256_ps(v); }
inline Ints as_ints(Floats v) { return _mm256_castps_si256(v); }

inline Ints load_bytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
// One unsigned byte for each lane.
inline Ints load_widened(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load(const Bf16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return as_floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Floats load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }

// The upper halves of 32-bit lanes.
inline void store_high_halves(Bf16* p, Ints v) {
    const __m256i high = _mm256_srli_epi32(v, 16);
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x88);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(pairs));
}
// The lowest byte of each lane.
inline void store_low_bytes(void* p, Ints v) {
    const __m256i first = _mm256_set1_epi32(0x0c080400);
    const __m256i bytes = _mm256_shuffle_epi8(v, first);
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes),
                                            _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), both);
}

inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
// On NaN the second operand.
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
// To nearest even; 0 for NaN.
inline Ints to_ints(Floats v) {
    const __m256 ordered = _mm256_cmp_ps(v, v, _CMP_ORD_Q);
    return _mm256_and_si256(_mm256_cvtps_epi32(v), as_ints(ordered));
}

inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints mul(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Ints max(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline Ints min(Ints a, Ints b) { return _mm256_min_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm256_and_si256(a, b); }
inline Ints bit_or(Ints a, Ints b) { return _mm256_or_si256(a, b); }
inline Ints bit_xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
// Lanes of a where all bits of the mask are set, else of b.
inline Ints choose(Ints mask, Ints a, Ints b) { return _mm256_blendv_epi8(b, a, mask); }
template <int kBits>
inline Ints shift_left(Ints v) {
    return _mm256_slli_epi32(v, kBits);
}
// With copies of the sign.
template <int kBits>
inline Ints shift_right(Ints v) {
    return _mm256_srai_epi32(v, kBits);
}
// All bits of a lane where a > b.
inline Ints is_greater(Ints a, Ints b) { return _mm256_cmpgt_epi32(a, b); }
inline Ints is_greater(Floats a, Floats b) { return as_ints(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline bool is_any(Ints mask) { return !_mm256_testz_si256(mask, mask); }

// All 64 bits of products of unsigned lanes.
struct WideProduct {
    Ints high;
    Ints low;
};
inline WideProduct wide_product(Ints v, uint32_t factor) {
    const Ints f = splat(int32_t(factor));
    const Ints even = _mm256_mul_epu32(v, f);
    const Ints odd = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), f);
    return {_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa),
            _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa)};
}

// Of the lower, and the upper, four 16-bit values of every 128 bits one in each lane, unsigned.
inline Ints lower_halves(Ints v) { return _mm256_unpacklo_epi16(v, _mm256_setzero_si256()); }
inline Ints upper_halves(Ints v) { return _mm256_unpackhi_epi16(v, _mm256_setzero_si256()); }

// Of four neighbouring columns of a row of weights in each lane, and of x in every lane.
inline Ints low_nibbles(Ints codes) { return _mm256_and_si256(codes, _mm256_set1_epi8(15)); }
inline Ints high_nibbles(Ints codes) { return low_nibbles(_mm256_srli_epi16(codes, 4)); }

#if defined(__AVXVNNI__)

// Sums of up to 32 columns of codes from 0 to 15 times codes of x.
struct GroupSums {
    Ints sums = _mm256_setzero_si256();

    void add_products(Ints codes, Ints x) { sums = _mm256_dpbusd_avx_epi32(sums, codes, x); }
    Ints total() const { return sums; }
};

// Codes of -127 to 127, of which the instruction takes code + 128.
struct SignedCodes {
    Ints codes;

    explicit SignedCodes(Ints offset_codes) : codes(offset_codes) {}
};
struct RowSums {
    Ints sums = _mm256_setzero_si256();

    void add_products(const SignedCodes& w, Ints x) {
        sums = _mm256_dpbusd_avx_epi32(sums, w.codes, x);
    }
    // offset: of each token, -128 times the sum of its codes.
    Ints total(Ints offset) const { return add(sums, offset); }
};

#else

// Sums of up to 32 columns of codes from 0 to 15 times codes of x. vpmaddubsw adds pairs of
// products in 16 bits, which hold 16 of them: 16 * 15 * 127 < 2^15.
struct GroupSums {
    Ints pairs = _mm256_setzero_si256();

    void add_products(Ints codes, Ints x) {
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes, x));
        asm("" : "+x"(pairs));  // GCC adds products to each other first, more than registers hold
    }
    Ints total() const { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
};

// Codes of -127 to 127. vpmaddubsw takes one of its factors unsigned and saturates; the magnitudes
// of the weight times x with the signs of the weight do not: 2 * 127 * 127 < 2^15.
struct SignedCodes {
    Ints codes;
    Ints magnitudes;

    explicit SignedCodes(Ints offset_codes)
        : codes(_mm256_xor_si256(offset_codes, _mm256_set1_epi8(-128))),
          magnitudes(_mm256_abs_epi8(codes)) {}
};
struct RowSums {
    Ints sums = _mm256_setzero_si256();

    void add_products(const SignedCodes& w, Ints x) {
        const __m256i pairs = _mm256_maddubs_epi16(w.magnitudes, _mm256_sign_epi8(x, w.codes));
        sums = add(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    Ints total(Ints) const { return sums; }
};

#endif

}  // namespace
}  // namespace hal::cpu
