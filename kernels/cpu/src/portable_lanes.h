// Loads, stores and elementary functions on the kWidth lanes of a register, whatever the instruction
// set: portable_level.h includes this behind a registers_*.h.
#pragma once

#include "kernels.h"
#include "threads.h"

namespace hal::cpu {
namespace {

// Registers of 16 rows, which is what the layouts count in.
inline constexpr int kParts = kLanes / kWidth;

inline Floats zeros() { return splat(0.0f); }
inline Ints broadcast(const int32_t* p) { return splat(*p); }

inline Ints lane_ids() {
    alignas(64) static constexpr int32_t kIds[] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                   8, 9, 10, 11, 12, 13, 14, 15};
    return load_bytes(kIds);
}
// All bits of the first `count` lanes.
inline Ints first_lanes(int64_t count) {
    return is_greater(splat(int32_t(count < kWidth ? count : kWidth)), lane_ids());
}

// The even and the odd element of the pair of bfloat16 in each lane.
inline Floats first_of_pair(Ints pairs) { return as_floats(shift_left<16>(pairs)); }
inline Floats second_of_pair(Ints pairs) {
    return as_floats(bit_and(pairs, splat(int32_t(0xffff0000))));
}

// Bits of magnitudes order as the magnitudes do, with infinity and NaN above all numbers.
inline Ints magnitude_bits(Floats v) { return bit_and(as_ints(v), splat(0x7fffffff)); }

// Rounded to nearest even in integers; NaN stays NaN.
inline void store(Bf16* p, Floats v) {
    const Ints bits = as_ints(v);
    const Ints odd = bit_and(shift_right<16>(bits), splat(1));
    const Ints rounded = add(bits, add(odd, splat(0x7fff)));
    const Ints is_nan = is_greater(magnitude_bits(v), splat(0x7f800000));
    store_high_halves(p, choose(is_nan, bit_or(bits, splat(0x00400000)), rounded));
}

// The first `count` of kWidth values, zeros behind them; count may be anything.
template <class T>
inline Floats load(const T* p, int64_t count) {
    if (count >= kWidth) return load(p);
    alignas(64) T values[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = p[i];
    return load(values);
}
inline Floats load_half(const uint16_t* p, int64_t count) {
    if (count >= kWidth) return load_half(p);
    alignas(64) uint16_t values[kWidth] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = p[i];
    return load_half(values);
}
inline Floats load(const void* p, DType dtype, int64_t index, int64_t count) {
    switch (dtype) {
        case DType::kFloat32:
            return load(static_cast<const float*>(p) + index, count);
        case DType::kBfloat16:
            return load(static_cast<const Bf16*>(p) + index, count);
        default:
            return load_half(static_cast<const uint16_t*>(p) + index, count);
    }
}

template <class T>
inline void store(T* p, Floats v, int64_t count) {
    if (count >= kWidth) return store(p, v);
    alignas(64) T values[kWidth];
    store(values, v);
    for (int64_t i = 0; i < count; ++i) p[i] = values[i];
}
// To float32 or bfloat16.
inline void store(void* p, DType dtype, int64_t index, Floats v, int64_t count) {
    if (dtype == DType::kFloat32) {
        store(static_cast<float*>(p) + index, v, count);
    } else {
        store(static_cast<Bf16*>(p) + index, v, count);
    }
}

// Of all lanes.
inline int32_t largest_of(Ints v) {
    alignas(64) int32_t lanes[kWidth];
    __builtin_memcpy(lanes, &v, sizeof v);
    int32_t largest = lanes[0];
    for (int i = 1; i < kWidth; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
    return largest;
}
inline int32_t sum_of(Ints v) {
    alignas(64) int32_t lanes[kWidth];
    __builtin_memcpy(lanes, &v, sizeof v);
    int32_t sum = 0;
    for (int i = 0; i < kWidth; ++i) sum += lanes[i];
    return sum;
}

// p * 2^n in two steps, since 2^n alone may be no float.
inline Floats scaled_by_power(Floats p, Ints n) {
    const Ints half = shift_right<1>(n), rest = sub(n, half), bias = splat(127);
    return p * as_floats(shift_left<23>(add(half, bias))) *
           as_floats(shift_left<23>(add(rest, bias)));
}

// e^x within 2 ulp; exactly 1 at 0, exactly 0 below -104, NaN stays NaN. Cody-Waite reduction and
// the Taylor polynomial of degree 7, as in simd_avx512.h.
inline Floats exp(Floats x) {
    x = max(splat(-104.0f), x);
    x = min(splat(88.7f), x);
    const Ints power = to_ints(x * splat(1.44269504f));
    const Floats n = to_floats(power);
    Floats r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    Floats p = splat(1.9841270e-4f);
    p = fma(p, r, splat(1.3888889e-3f));
    p = fma(p, r, splat(8.3333333e-3f));
    p = fma(p, r, splat(4.1666667e-2f));
    p = fma(p, r, splat(1.6666667e-1f));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return scaled_by_power(p, power);
}

inline Floats tanh(Floats x) {
    return splat(1.0f) - splat(2.0f) / (exp(x + x) + splat(1.0f));
}

inline Floats silu(Floats x) { return x / (splat(1.0f) + exp(zeros() - x)); }

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), written as x * sigmoid of twice that argument.
inline Floats gelu_tanh(Floats x) {
    const Floats inner = fma(x, x * x * splat(0.044715f), x);
    return x / (splat(1.0f) + exp(inner * splat(-2.0f * 0.7978845608f)));
}

// Source of erf: Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
inline Floats gelu(Floats x) {
    const Floats z = as_floats(magnitude_bits(x)) * splat(0.70710678f), one = splat(1.0f);
    const Floats t = one / fma(z, splat(0.3275911f), one);
    Floats p = splat(1.061405429f);
    p = fma(p, t, splat(-1.453152027f));
    p = fma(p, t, splat(1.421413741f));
    p = fma(p, t, splat(-0.284496736f));
    p = fma(p, t, splat(0.254829592f));
    // The upper tail of the normal distribution at |x|.
    const Floats tail = p * t * (exp(zeros() - z * z) * splat(0.5f));
    const Ints is_negative = is_greater(splat(0), as_ints(x));
    return x * as_floats(choose(is_negative, as_ints(tail), as_ints(one - tail)));
}

inline Floats activated(Activation activation, Floats x) {
    switch (activation) {
        case Activation::kSilu:
            return silu(x);
        case Activation::kGeluTanh:
            return gelu_tanh(x);
        case Activation::kGelu:
            return gelu(x);
        case Activation::kRelu:
            return max(zeros(), x);
        case Activation::kNone:
            break;
    }
    return x;
}

}  // namespace
}  // namespace hal::cpu
