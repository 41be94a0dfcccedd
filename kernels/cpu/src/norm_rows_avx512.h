// Norms of rows: an op of its own in norm_avx512.cpp, and in front of products, which norm a row right
// before they read it.
#pragma once

#include "simd_avx512.h"

namespace hal::cpu {
namespace {

struct Moments {
    float mean;
    float inverse_deviation;
};

// residual[row] += x[row]; returns the row to be normed.
template <class T>
const T* add_residual(const NormArgs& args, int64_t row) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
    if (args.residual == nullptr) return x;
    T* residual = static_cast<T*>(args.residual) + row * args.residual_stride;
    for (int64_t i = 0; i < args.hidden; i += kLanes) {
        const __mmask16 mask = tail_mask(args.hidden - i);
        store(residual + i, _mm512_add_ps(load(x + i, mask), load(residual + i, mask)), mask);
    }
    return residual;
}

template <class T>
float sum_of(const T* x, int64_t size) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += kLanes) {
        sum = _mm512_add_ps(sum, load(x + i, tail_mask(size - i)));
    }
    return _mm512_reduce_add_ps(sum);
}

template <class T>
float squares_about(const T* x, int64_t size, float mean) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += kLanes) {
        const __mmask16 mask = tail_mask(size - i);
        const __m512 v = _mm512_maskz_sub_ps(mask, load(x + i, mask), _mm512_set1_ps(mean));
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

template <class T>
Moments moments(const NormArgs& args, const T* x) {
    const float mean = args.layer_norm ? sum_of(x, args.hidden) / float(args.hidden) : 0.0f;
    const float variance = squares_about(x, args.hidden, mean) / float(args.hidden);
    return {mean, 1.0f / __builtin_sqrtf(variance + args.eps)};
}

template <class T>
void norm_row(const NormArgs& args, int64_t row) {
    const T* x = add_residual<T>(args, row);
    const T* weight = static_cast<const T*>(args.weight);
    const T* bias = static_cast<const T*>(args.bias);
    T* out = static_cast<T*>(args.out) + row * args.out_stride;
    const Moments m = moments(args, x);
    for (int64_t i = 0; i < args.hidden; i += kLanes) {
        const __mmask16 mask = tail_mask(args.hidden - i);
        __m512 v = _mm512_sub_ps(load(x + i, mask), _mm512_set1_ps(m.mean));
        v = _mm512_mul_ps(v, _mm512_set1_ps(m.inverse_deviation));
        v = _mm512_mul_ps(v, load(weight + i, mask));
        if (bias != nullptr) v = _mm512_add_ps(v, load(bias + i, mask));
        store(out + i, v, mask);
    }
}

inline void norm_rows(const NormArgs& args, const Range& rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        if (args.dtype == DType::kBfloat16) {
            norm_row<Bf16>(args, row);
        } else {
            norm_row<float>(args, row);
        }
    }
}

}  // namespace
}  // namespace hal::cpu
