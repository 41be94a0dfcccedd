// What follows a product, on one row of one panel of its sums: bias, activation, gate, rounding.
#pragma once

#include "portable_lanes.h"

namespace hal::cpu {
namespace {

inline Floats biased(const LinearOutput& output, int64_t column, const float* sums) {
    const Floats value = load(sums);
    if (output.bias == nullptr) return value;
    return value + load(output.bias, output.bias_dtype, column, output.n - column);
}

inline void finish_part(const LinearOutput& output, int64_t row, int64_t column, Floats value) {
    const int64_t columns = output.gated ? output.n / 2 : output.n;
    store(output.out, output.dtype, row * output.stride + column, value, columns - column);
}

// 16 pairs of gate and up: of weight rows first.. and first + 16..
inline void finish_gated(const LinearOutput& output, int64_t row, int64_t first,
                         const float* sums) {
    for (int64_t i = 0; i < kLanes; i += kWidth) {
        const Floats gate = biased(output, first + i, sums + i);
        const Floats up = biased(output, first + kLanes + i, sums + kLanes + i);
        finish_part(output, row, first / 2 + i, activated(output.activation, gate) * up);
    }
}

// sums: of weight rows first.. first + width, width a multiple of 16 and of 32 where gated.
inline void finish_row(const LinearOutput& output, int64_t row, int64_t first, int64_t width,
                       const float* sums) {
    if (output.gated) {
        for (int64_t c = 0; c < width; c += 2 * kLanes) {
            finish_gated(output, row, first + c, sums + c);
        }
        return;
    }
    for (int64_t c = 0; c < width; c += kWidth) {
        const Floats value = activated(output.activation, biased(output, first + c, sums + c));
        finish_part(output, row, first + c, value);
    }
}

}  // namespace
}  // namespace hal::cpu
