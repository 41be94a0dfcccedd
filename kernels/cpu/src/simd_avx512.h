// Loads, stores and elementary functions on 16 float32 lanes. Included by *_avx512.cpp only, and
// everything here has internal linkage: a function compiled for AVX-512 must never be the copy the
// linker keeps for a file compiled without it (so no std:: templates in those files either).
#pragma once

// GCC 12's own intrinsics initialise "undefined" registers with themselves (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include "kernels.h"
#include "threads.h"

namespace hal::cpu {
namespace {

inline __mmask16 tail_mask(int64_t count) {
    return count >= kLanes ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
}

inline __m512 widen(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const Bf16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const Bf16* p, __mmask16 mask) {
    return widen(_mm256_maskz_loadu_epi16(mask, p));
}
inline __m512 load(const void* p, DType dtype, int64_t index, __mmask16 mask) {
    return dtype == DType::kFloat32 ? load(static_cast<const float*>(p) + index, mask)
                                    : load(static_cast<const Bf16*>(p) + index, mask);
}

inline void store(float* p, __m512 v, __mmask16 mask) { _mm512_mask_storeu_ps(p, mask, v); }
inline void store(Bf16* p, __m512 v, __mmask16 mask) {
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
}
inline void store(void* p, DType dtype, int64_t index, __m512 v, __mmask16 mask) {
    if (dtype == DType::kFloat32) {
        store(static_cast<float*>(p) + index, v, mask);
    } else {
        store(static_cast<Bf16*>(p) + index, v, mask);
    }
}

// What a value of this type reads back as after being stored.
inline __m512 rounded(const float*, __m512 v) { return v; }
inline __m512 rounded(const Bf16*, __m512 v) { return widen((__m256i)_mm512_cvtneps_pbh(v)); }

// e^x within 2 ulp; exactly 1 at 0, exactly 0 below -104, NaN stays NaN (min and max return their
// second operand then). Cody-Waite reduction and the Taylor polynomial of degree 7.
inline __m512 exp(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
    x = _mm512_min_ps(_mm512_set1_ps(88.7f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9841270e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3888889e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3333333e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1666667e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666667e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

inline __m512 tanh(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 e = exp(_mm512_add_ps(x, x));
    return _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
}

inline __m512 silu(__m512 x) {
    const __m512 e = exp(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), written as x * sigmoid of twice that argument.
inline __m512 gelu_tanh(__m512 x) {
    const __m512 cubic = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f));
    const __m512 inner = _mm512_fmadd_ps(x, cubic, x);
    const __m512 e = exp(_mm512_mul_ps(inner, _mm512_set1_ps(-2.0f * 0.7978845608f)));
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

// Source of erf: Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
inline __m512 gelu(__m512 x) {
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    const __m512 e = exp(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z)));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), _mm512_mul_ps(e, _mm512_set1_ps(0.5f)));
    // tail is the upper tail of the normal distribution at |x|.
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), negative, tail));
}

inline __m512 activated(Activation activation, __m512 x) {
    switch (activation) {
        case Activation::kSilu:
            return silu(x);
        case Activation::kGeluTanh:
            return gelu_tanh(x);
        case Activation::kGelu:
            return gelu(x);
        case Activation::kRelu:
            return _mm512_max_ps(_mm512_setzero_ps(), x);
        case Activation::kNone:
            break;
    }
    return x;
}

// Transposes 16 rows of 16 dwords held in registers.
inline void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

}  // namespace
}  // namespace hal::cpu
