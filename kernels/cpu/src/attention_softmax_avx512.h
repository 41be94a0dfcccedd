// The running state of an online softmax, and the functions on it.
#pragma once

#include "simd_avx512.h"

namespace hal::cpu {
namespace {

// Stands for minus infinity in running maxima, where inf - inf would be NaN.
constexpr float kNoScore = -1e30f;

// Softmax state of a set of rows, scores being in powers of two. values[row] is the V sum weighted
// by 2^(score - maximum); the sum of the weights is kept in 16 lanes until it is needed.
struct Sums {
    float* maximum;
    float* weights;  // [rows][16]
    float* values;
    int64_t stride;  // between rows, of all three

    int64_t dim() const { return stride - 2 * kLanes; }
};

inline Sums carve_sums(char** memory, int64_t rows, int64_t row_floats) {
    float* base = reinterpret_cast<float*>(*memory);
    *memory += rows * row_floats * 4;
    return {base, base + kLanes, base + 2 * kLanes, row_floats};
}

inline void clear_row(const Sums& sums, int64_t row) {
    sums.maximum[row * sums.stride] = kNoScore;
    for (int64_t i = 0; i < kLanes + sums.dim(); i += kLanes) {
        _mm512_storeu_ps(sums.weights + row * sums.stride + i, _mm512_setzero_ps());
    }
}

inline void clear(const Sums& sums, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) clear_row(sums, row);
}

// 2^x for x <= 0 within 2 ulp; exactly 1 at 0 and 0 below -152, NaN stays NaN. The Taylor polynomial
// of degree 6 on [-1/2, 1/2].
inline __m512 exp2(__m512 x) {
    constexpr float coefficients[] = {1.0f,          6.9314718e-1f, 2.4022651e-1f, 5.5504109e-2f,
                                      9.6181291e-3f, 1.3333558e-3f, 1.5403530e-4f};
    x = _mm512_max_ps(_mm512_set1_ps(-152.0f), x);
    const __m512 n = _mm512_roundscale_ps(x, 0);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(coefficients[6]);
#pragma GCC unroll 6
    for (int i = 5; i >= 0; --i) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficients[i]));
    return _mm512_scalef_ps(p, n);
}

// The same within 9e-5 in half the steps, for weights that are about to lose more. The minimax
// polynomial of degree 3 on [0, 1) that is 1 at 0; scalef takes the floor of x by itself.
inline __m512 exp2_short(__m512 x) {
    constexpr int to_floor = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const __m512 r = _mm512_reduce_ps(x, to_floor);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.07706706f), r, _mm512_set1_ps(0.22764497f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69511679f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, x);
}

inline float exp2_scalar(float x) {
    return x == 0.0f ? 1.0f : _mm512_cvtss_f32(exp2(_mm512_set1_ps(x)));
}

// into += from for one row. Merging an empty state, or into one, changes no bit of the other.
inline void merge_row(const Sums& from, const Sums& into, int64_t row) {
    const int64_t at = row * from.stride;
    const float maximum = __builtin_fmaxf(from.maximum[at], into.maximum[at]);
    const __m512 from_scale = _mm512_set1_ps(exp2_scalar(from.maximum[at] - maximum));
    const __m512 into_scale = _mm512_set1_ps(exp2_scalar(into.maximum[at] - maximum));
    into.maximum[at] = maximum;
    for (int64_t i = 0; i < kLanes + from.dim(); i += kLanes) {
        const __m512 kept = _mm512_mul_ps(load(into.weights + at + i), into_scale);
        const __m512 added = load(from.weights + at + i);
        _mm512_storeu_ps(into.weights + at + i, _mm512_fmadd_ps(added, from_scale, kept));
    }
}

// What turns products into scores in powers of two.
struct Scale {
    explicit Scale(const AttentionArgs& args) {
        constexpr float log2_e = 1.44269504f;
        capped = args.softcap > 0;
        product = capped ? args.scale / args.softcap : args.scale * log2_e;
        cap = _mm512_set1_ps(args.softcap * log2_e);
    }

    // scaled: products times `product`
    __m512 score(__m512 scaled) const {
        return capped ? _mm512_mul_ps(tanh(scaled), cap) : scaled;
    }

    bool capped;
    float product;
    __m512 cap;
};

inline void raise_maximum(const Sums& sums, int64_t row, __m512 highest) {
    float& maximum = sums.maximum[row * sums.stride];
    const float before = maximum;
    maximum = _mm512_reduce_max_ps(highest);
    if (before == kNoScore) return;  // nothing has been summed
    const __m512 scale = _mm512_set1_ps(exp2_scalar(before - maximum));
    float* weights = sums.weights + row * sums.stride;
    for (int64_t i = 0; i < kLanes + sums.dim(); i += kLanes) {
        _mm512_storeu_ps(weights + i, _mm512_mul_ps(load(weights + i), scale));
    }
}

}  // namespace
}  // namespace hal::cpu
