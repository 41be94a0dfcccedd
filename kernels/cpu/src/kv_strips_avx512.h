// The K and V of one token into their strips (KvShape), as they are or rounded to codes.
#pragma once

#include "quantize_avx512.h"

namespace hal::cpu {
namespace {

// 16 dwords into as many units of K, which lie 64 bytes apart.
inline void scatter_units(char* to, __mmask16 mask, __m512i dwords) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_mask_i32scatter_epi32(to, mask, _mm512_slli_epi32(lane, 6), dwords, 1);
}

// Element `place` of up to 16 dwords of V; the elements of other tokens beside it are not touched.
inline void store_column(char* to, int64_t count, int64_t, const float* v) {
    const __mmask16 mask = tail_mask(count);
    _mm512_mask_storeu_ps(to, mask, _mm512_maskz_loadu_ps(mask, v));
}
inline void store_column(char* to, int64_t count, int64_t place, const Bf16* v) {
    const __mmask16 mask = tail_mask(count);
    const __m512i dwords = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, v));
    const __m512i sign = _mm512_set1_epi32(int(0x8000u << (16 * place)));
    const __mmask32 own = _mm512_movepi16_mask(_mm512_maskz_mov_epi32(mask, sign));
    _mm512_mask_storeu_epi16(to, own, _mm512_slli_epi32(dwords, unsigned(16 * place)));
}
inline void store_codes(char* to, int64_t count, int64_t place, __m512i codes) {
    const __m512i sign = _mm512_set1_epi32(int(0x80u << (8 * place)));
    const __mmask64 own = _mm512_movepi8_mask(_mm512_maskz_mov_epi32(tail_mask(count), sign));
    _mm512_mask_storeu_epi8(to, own, _mm512_slli_epi32(codes, unsigned(8 * place)));
}

template <class T>
void write_elements(const KvShape& shape, char* strip, int64_t token, const void* k,
                    const void* v) {
    const int64_t dim = shape.head_dim, step = shape.step();
    const int64_t units = dim / step;
    const char* keys = static_cast<const char*>(k);
    for (int64_t u = 0; u < units; u += kLanes) {
        const __mmask16 mask = tail_mask(units - u);
        scatter_units(strip + 64 * u + 4 * token, mask,
                      _mm512_maskz_loadu_epi32(mask, keys + 4 * u));
    }
    const T* values = static_cast<const T*>(v);
    char* row = strip + shape.side_bytes() + token / step * 4 * dim;
    for (int64_t c = 0; c < dim; c += kLanes) {
        store_column(row + 4 * c, dim - c, token % step, values + c);
    }
}

// As hal/kv.py defines it; a head that is not finite has a scale of NaN.
inline Scale8 head_scale(const FloatRow& head) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < head.columns; i += kLanes) {
        largest = _mm512_max_epu32(largest, magnitude_bits(head.load16(i)));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(largest);
    if (bits >= kInfinity) return {__builtin_nanf(""), 0.0f};
    if (as_float(bits) <= kSmallest) return {0.0f, 0.0f};
    const __m512 exact = _mm512_set1_ps(as_float(bits) / 127.0f);
    const float scale = _mm512_cvtss_f32(rounded(static_cast<const Bf16*>(nullptr), exact));
    return {scale, 1.0f / scale};
}

inline __m512i head_codes(const FloatRow& head, int64_t at, float inverse) {
    const __m512i codes = rounded_codes(head.load16(at), inverse);
    return _mm512_max_epi32(_mm512_min_epi32(codes, _mm512_set1_epi32(127)),
                            _mm512_set1_epi32(-127));
}

inline void store_scale(float scale, char* to) {
    store(reinterpret_cast<Bf16*>(to), _mm512_set1_ps(scale), __mmask16(1));
}

inline void write_codes(const KvShape& shape, char* strip, int64_t token, const FloatRow& k,
                        const FloatRow& v) {
    const int64_t dim = shape.head_dim;
    char* scales = strip + 2 * shape.side_bytes() + 2 * token;
    const Scale8 of_k = head_scale(k), of_v = head_scale(v);
    store_scale(of_k.scale, scales);
    store_scale(of_v.scale, scales + 2 * kLanes);
    char* row = strip + shape.side_bytes() + token / 4 * 4 * dim;
    for (int64_t c = 0; c < dim; c += kLanes) {
        // 4 units of K: codes in order, each with its offset.
        const __m128i bytes = _mm512_cvtepi32_epi8(head_codes(k, c, of_k.inverse));
        const __m128i offset = _mm_xor_si128(bytes, _mm_set1_epi8(char(0x80)));
        const int64_t units = dim - c < kLanes ? (dim - c) / 4 : 4;
        scatter_units(strip + 16 * c + 4 * token, tail_mask(units),
                      _mm512_castsi128_si512(offset));
        const __m512i codes = head_codes(v, c, of_v.inverse);
        store_codes(row + 4 * c, dim - c, token % 4,
                    _mm512_and_si512(codes, _mm512_set1_epi32(0xff)));
    }
}

}  // namespace
}  // namespace hal::cpu
