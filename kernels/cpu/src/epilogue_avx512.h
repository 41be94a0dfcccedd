// What follows a product, on one row of one panel of its sums: bias, activation, gate, rounding.
#pragma once

#include "simd_avx512.h"

namespace hal::cpu {
namespace {

inline __m512 biased(const LinearOutput& output, int64_t column, const float* sums) {
    const __m512 value = load(sums);
    if (output.bias == nullptr) return value;
    const __mmask16 mask = tail_mask(output.n - column);
    return _mm512_add_ps(value, load(output.bias, output.bias_dtype, column, mask));
}

inline void finish_vector(const LinearOutput& output, int64_t row, int64_t column, __m512 value) {
    const int64_t columns = output.gated ? output.n / 2 : output.n;
    const __mmask16 mask = tail_mask(columns - column);
    store(output.out, output.dtype, row * output.stride + column, value, mask);
}

// sums: of weight rows first.. first + width, width a multiple of 16 and of 32 where gated.
inline void finish_row(const LinearOutput& output, int64_t row, int64_t first, int64_t width,
                       const float* sums) {
    if (output.gated) {
        for (int64_t c = 0; c < width; c += 2 * kLanes) {
            const __m512 gate = biased(output, first + c, sums + c);
            const __m512 up = biased(output, first + c + kLanes, sums + c + kLanes);
            const __m512 value = _mm512_mul_ps(activated(output.activation, gate), up);
            finish_vector(output, row, (first + c) / 2, value);
        }
        return;
    }
    for (int64_t c = 0; c < width; c += kLanes) {
        const __m512 value = activated(output.activation, biased(output, first + c, sums + c));
        finish_vector(output, row, first + c, value);
    }
}

}  // namespace
}  // namespace hal::cpu
