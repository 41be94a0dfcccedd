// The registers of AArch64's Advanced SIMD, as the portable kernels see them: 4 lanes of 32 bits.
// With the dot-product instructions where the file is compiled for them. Internal linkage, as in
// simd_avx512.h, because both kinds meet in one module.
#pragma once

#include <arm_neon.h>

#include "kernels.h"

namespace hal::cpu {
namespace {

using Floats = float32x4_t;
using Ints = int32x4_t;
inline constexpr int kWidth = 4;
inline constexpr int kRegisters = 32;

inline Floats splat(float value) { return vdupq_n_f32(value); }
inline Ints splat(int32_t value) { return vdupq_n_s32(value); }
inline Floats as_floats(Ints v) { return vreinterpretq_f32_s32(v); }
inline Ints as_ints(Floats v) { return vreinterpretq_s32_f32(v); }

inline Ints load_bytes(const void* p) {
    return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
}
// One unsigned byte for each lane.
inline Ints load_widened(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    const uint16x8_t halves = vmovl_u8(vcreate_u8(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(halves)));
}
inline Floats load(const float* p) { return vld1q_f32(p); }
inline Floats load(const Bf16* p) {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const uint16_t*>(p));
    return vreinterpretq_f32_u32(vshll_n_u16(bits, 16));
}
inline Floats load_half(const uint16_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
inline void store(float* p, Floats v) { vst1q_f32(p, v); }

// The upper halves of 32-bit lanes.
inline void store_high_halves(Bf16* p, Ints v) {
    vst1_u16(reinterpret_cast<uint16_t*>(p), vshrn_n_u32(vreinterpretq_u32_s32(v), 16));
}
// The lowest byte of each lane.
inline void store_low_bytes(void* p, Ints v) {
    const int16x4_t halves = vmovn_s32(v);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(halves, halves));
    const int32_t lanes = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    __builtin_memcpy(p, &lanes, sizeof lanes);
}

inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
// NaN if any operand is.
inline Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
inline Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
inline Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
// To nearest even; 0 for NaN.
inline Ints to_ints(Floats v) { return vcvtnq_s32_f32(v); }

inline Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
inline Ints sub(Ints a, Ints b) { return vsubq_s32(a, b); }
inline Ints mul(Ints a, Ints b) { return vmulq_s32(a, b); }
inline Ints max(Ints a, Ints b) { return vmaxq_s32(a, b); }
inline Ints min(Ints a, Ints b) { return vminq_s32(a, b); }
inline Ints bit_and(Ints a, Ints b) { return vandq_s32(a, b); }
inline Ints bit_or(Ints a, Ints b) { return vorrq_s32(a, b); }
inline Ints bit_xor(Ints a, Ints b) { return veorq_s32(a, b); }
// Lanes of a where all bits of the mask are set, else of b.
inline Ints choose(Ints mask, Ints a, Ints b) {
    return vbslq_s32(vreinterpretq_u32_s32(mask), a, b);
}
template <int kBits>
inline Ints shift_left(Ints v) {
    return vshlq_n_s32(v, kBits);
}
// With copies of the sign.
template <int kBits>
inline Ints shift_right(Ints v) {
    return vshrq_n_s32(v, kBits);
}
// All bits of a lane where a > b.
inline Ints is_greater(Ints a, Ints b) { return vreinterpretq_s32_u32(vcgtq_s32(a, b)); }
inline Ints is_greater(Floats a, Floats b) { return vreinterpretq_s32_u32(vcgtq_f32(a, b)); }
inline bool is_any(Ints mask) { return vmaxvq_u32(vreinterpretq_u32_s32(mask)) != 0; }

// All 64 bits of products of unsigned lanes.
struct WideProduct {
    Ints high;
    Ints low;
};
inline WideProduct wide_product(Ints v, uint32_t factor) {
    const uint32x4_t x = vreinterpretq_u32_s32(v), f = vdupq_n_u32(factor);
    const uint32x4_t low = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(x), vget_low_u32(f)));
    const uint32x4_t high = vreinterpretq_u32_u64(vmull_high_u32(x, f));
    return {vreinterpretq_s32_u32(vuzp2q_u32(low, high)),
            vreinterpretq_s32_u32(vuzp1q_u32(low, high))};
}

// Of the lower, and the upper, four 16-bit values one in each lane, unsigned.
inline Ints lower_halves(Ints v) {
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vreinterpretq_u16_s32(v))));
}
inline Ints upper_halves(Ints v) {
    return vreinterpretq_s32_u32(vmovl_high_u16(vreinterpretq_u16_s32(v)));
}

// Of four neighbouring columns of a row of weights in each lane, and of x in every lane.
inline Ints low_nibbles(Ints codes) {
    return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(codes), vdupq_n_u8(15)));
}
inline Ints high_nibbles(Ints codes) {
    return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(codes), 4));
}

inline int8x16_t as_bytes(Ints v) { return vreinterpretq_s8_s32(v); }

// Codes of -127 to 127.
struct SignedCodes {
    int8x16_t codes;

    explicit SignedCodes(Ints offset_codes)
        : codes(veorq_s8(as_bytes(offset_codes), vdupq_n_s8(-128))) {}
};

#if defined(__ARM_FEATURE_DOTPROD)

// Tokens whose sums of 16 rows stay in registers.
inline constexpr int kTileTokens = 4;

// Sums of up to 32 columns of codes from 0 to 15 times codes of x.
struct GroupSums {
    Ints sums = vdupq_n_s32(0);

    void add_products(Ints codes, Ints x) { sums = vdotq_s32(sums, as_bytes(codes), as_bytes(x)); }
    Ints total() const { return sums; }
};
struct RowSums {
    Ints sums = vdupq_n_s32(0);

    void add_products(const SignedCodes& w, Ints x) {
        sums = vdotq_s32(sums, w.codes, as_bytes(x));
    }
    Ints total(Ints) const { return sums; }
};

#else

inline constexpr int kTileTokens = 2;

// Sums of up to 32 columns of codes from 0 to 15 times codes of x: the products of a column in
// each lane, which 16 bits hold for 8 columns: 8 * 15 * 127 < 2^15.
struct GroupSums {
    int16x8_t first = vdupq_n_s16(0), second = vdupq_n_s16(0);

    void add_products(Ints codes, Ints x) {
        first = vmlal_s8(first, vget_low_s8(as_bytes(codes)), vget_low_s8(as_bytes(x)));
        second = vmlal_high_s8(second, as_bytes(codes), as_bytes(x));
    }
    Ints total() const { return vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second)); }
};
struct RowSums {
    Ints first = vdupq_n_s32(0), second = vdupq_n_s32(0);

    void add_products(const SignedCodes& w, Ints x) {
        first = vpadalq_s16(first, vmull_s8(vget_low_s8(w.codes), vget_low_s8(as_bytes(x))));
        second = vpadalq_s16(second, vmull_high_s8(w.codes, as_bytes(x)));
    }
    Ints total(Ints) const { return vpaddq_s32(first, second); }
};

#endif

}  // namespace
}  // namespace hal::cpu
