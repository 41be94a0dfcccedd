// The registers of AVX512 F, BW, DQ and VL without VNNI or BF16, as the portable kernels see them:
// 16 lanes of 32 bits. Included by *_avx512f.cpp only; internal linkage, as in simd_avx512.h.
#pragma once

// GCC 12's own intrinsics initialise "undefined" registers with themselves (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include "kernels.h"

namespace hal::cpu {
namespace {

using Floats = __m512;
using Ints = __m512i;
inline constexpr int kWidth = 16;
inline constexpr int kRegisters = 32;
// Tokens whose sums of 16 rows stay in registers.
inline constexpr int kTileTokens = 8;

inline Floats splat(float value) { return _mm512_set1_ps(value); }
inline Ints splat(int32_t value) { return _mm512_set1_epi32(value); }
inline Floats as_floats(Ints v) { return _mm512_castsi512_ps(v); }
inline Ints as_ints(Floats v) { return _mm512_castps_si512(v); }

inline Ints load_bytes(const void* p) { return _mm512_loadu_si512(p); }
// One unsigned byte for each lane.
inline Ints load_widened(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const Bf16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return as_floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Floats load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }

// The upper halves of 32-bit lanes.
inline void store_high_halves(Bf16* p, Ints v) {
    const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(v, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
}
// The lowest byte of each lane.
inline void store_low_bytes(void* p, Ints v) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}

inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// On NaN the second operand.
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
// To nearest even; 0 for NaN.
inline Ints to_ints(Floats v) {
    return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
}

inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Ints min(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return _mm512_and_si512(a, b); }
inline Ints bit_or(Ints a, Ints b) { return _mm512_or_si512(a, b); }
inline Ints bit_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
// Lanes of a where all bits of the mask are set, else of b.
inline Ints choose(Ints mask, Ints a, Ints b) {
    return _mm512_mask_mov_epi32(b, _mm512_movepi32_mask(mask), a);
}
template <int kBits>
inline Ints shift_left(Ints v) {
    return _mm512_slli_epi32(v, kBits);
}
// With copies of the sign.
template <int kBits>
inline Ints shift_right(Ints v) {
    return _mm512_srai_epi32(v, kBits);
}
// All bits of a lane where a > b.
inline Ints is_greater(Ints a, Ints b) {
    return _mm512_movm_epi32(_mm512_cmpgt_epi32_mask(a, b));
}
inline Ints is_greater(Floats a, Floats b) {
    return _mm512_movm_epi32(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ));
}
inline bool is_any(Ints mask) { return _mm512_movepi32_mask(mask) != 0; }

// All 64 bits of products of unsigned lanes.
struct WideProduct {
    Ints high;
    Ints low;
};
inline WideProduct wide_product(Ints v, uint32_t factor) {
    const Ints f = splat(int32_t(factor));
    const Ints even = _mm512_mul_epu32(v, f);
    const Ints odd = _mm512_mul_epu32(_mm512_srli_epi64(v, 32), f);
    return {_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd),
            _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32))};
}

// Of the lower, and the upper, four 16-bit values of every 128 bits one in each lane, unsigned.
inline Ints lower_halves(Ints v) { return _mm512_unpacklo_epi16(v, _mm512_setzero_si512()); }
inline Ints upper_halves(Ints v) { return _mm512_unpackhi_epi16(v, _mm512_setzero_si512()); }

// Of four neighbouring columns of a row of weights in each lane, and of x in every lane.
inline Ints low_nibbles(Ints codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
inline Ints high_nibbles(Ints codes) { return low_nibbles(_mm512_srli_epi16(codes, 4)); }

#if defined(__AVX512VNNI__)

// All as in registers_avx2.h with AVX-VNNI.
struct GroupSums {
    Ints sums = _mm512_setzero_si512();

    void add_products(Ints codes, Ints x) { sums = _mm512_dpbusd_epi32(sums, codes, x); }
    Ints total() const { return sums; }
};
struct SignedCodes {
    Ints codes;

    explicit SignedCodes(Ints offset_codes) : codes(offset_codes) {}
};
struct RowSums {
    Ints sums = _mm512_setzero_si512();

    void add_products(const SignedCodes& w, Ints x) {
        sums = _mm512_dpbusd_epi32(sums, w.codes, x);
    }
    Ints total(Ints offset) const { return add(sums, offset); }
};

#else

// As in registers_avx2.h.
struct GroupSums {
    Ints pairs = _mm512_setzero_si512();

    void add_products(Ints codes, Ints x) {
        pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(codes, x));
        asm("" : "+v"(pairs));
    }
    Ints total() const { return _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)); }
};

// As in registers_avx2.h; AVX512 has no vpsignb, but subtracts under a mask.
struct SignedCodes {
    Ints magnitudes;
    __mmask64 is_negative;

    explicit SignedCodes(Ints offset_codes)
        : magnitudes(_mm512_abs_epi8(_mm512_xor_si512(offset_codes, _mm512_set1_epi8(-128)))),
          is_negative(~_mm512_movepi8_mask(offset_codes)) {}
};
struct RowSums {
    Ints sums = _mm512_setzero_si512();

    void add_products(const SignedCodes& w, Ints x) {
        const __m512i turned = _mm512_mask_sub_epi8(x, w.is_negative, _mm512_setzero_si512(), x);
        const __m512i pairs = _mm512_maddubs_epi16(w.magnitudes, turned);
        sums = add(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    Ints total(Ints) const { return sums; }
};

#endif

}  // namespace
}  // namespace hal::cpu
