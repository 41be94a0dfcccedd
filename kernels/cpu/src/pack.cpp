// Packed weights: plain copies, which need no more than any CPU of the architecture has.
#include <type_traits>

#include "kernels.h"
#include "threads.h"

namespace hal::cpu {
namespace {

inline float as_float(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Rounded to nearest even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return uint16_t((is_nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Moves the exponent's bias from 15 to 127, of infinity and NaN to 255; below the smallest normal
// half it counts units of 2^-24. Chosen by masks: of conditions GCC makes branches, and no vectors.
inline float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16;
    const int32_t magnitude = half & 0x7fff;
    const uint32_t is_special = -uint32_t(magnitude >= 0x7c00);
    const uint32_t is_small = -uint32_t(magnitude < 0x400);
    const uint32_t large = (uint32_t(magnitude) << 13) + 0x38000000 + (is_special & 0x38000000);
    const uint32_t small = bits_of(float(magnitude) * 0x1p-24f);
    return as_float(sign | (small & is_small) | (large & ~is_small));
}

struct Half {
    uint16_t bits;
};
inline float to_float(float value) { return value; }
inline float to_float(Bf16 value) { return as_float(uint32_t(value.bits) << 16); }
inline float to_float(Half value) { return from_half(value.bits); }

// Of equal types, bits are copied as they are: no conversion may flush a denormal weight.
inline void convert(float from, float* to) { *to = from; }
inline void convert(Bf16 from, Bf16* to) { *to = from; }
template <class From>
inline void convert(From from, float* to) {
    *to = to_float(from);
}
template <class From>
inline void convert(From from, Bf16* to) {
    to->bits = to_bf16(to_float(from));
}

int64_t destination_row(const PackArgs& args, int64_t row) {
    row += args.first_row;
    if (!args.gated) return row;
    const int64_t half = args.shape.n / 2;
    const int64_t up = row >= half ? 1 : 0;
    row -= up * half;
    return (row / kLanes * 2 + up) * kLanes + row % kLanes;
}

template <class From, class To>
void pack_row(const PackArgs& args, int64_t row) {
    constexpr int64_t step = 4 / sizeof(To);
    const PackedShape& shape = args.shape;
    const int64_t dst_row = destination_row(args, row);
    const int64_t unit_stride = shape.panel_width(dst_row / kPanelRows) * step;
    const From* src = static_cast<const From*>(args.src) + row * args.src_stride;
    To* dst = static_cast<To*>(args.dst) + shape.row_offset(dst_row);
    for (int64_t k = 0; k < shape.k; ++k) {
        convert(src[k], dst + k / step * unit_stride + k % step);
    }
}

// 16 rows of some whole units, `stride` apart, to where they belong, `unit_stride` from unit to unit.
template <class T>
void transpose_units(const T* src, int64_t stride, int64_t columns, T* dst, int64_t unit_stride) {
    constexpr int64_t step = 4 / sizeof(T);
    for (int64_t c = 0; c < columns; c += step, dst += unit_stride) {
        for (int64_t i = 0; i < kLanes; ++i) {
            __builtin_memcpy(dst + i * step, src + i * stride + c, 4);
        }
    }
}

// 16 rows that stay together in the destination, of whole units.
template <class From, class To>
void pack_row_group(const PackArgs& args, int64_t row) {
    constexpr int64_t step = 4 / sizeof(To), kChunk = 64;
    const PackedShape& shape = args.shape;
    const int64_t dst_row = destination_row(args, row);
    const int64_t unit_stride = shape.panel_width(dst_row / kPanelRows) * step;
    const From* src = static_cast<const From*>(args.src) + row * args.src_stride;
    To* dst = static_cast<To*>(args.dst) + shape.row_offset(dst_row);
    if constexpr (std::is_same_v<From, To>) {
        return transpose_units(src, args.src_stride, shape.k, dst, unit_stride);
    }
    To chunk[kLanes][kChunk];
    for (int64_t k = 0; k < shape.k; k += kChunk) {
        const int64_t left = shape.k - k, columns = left < kChunk ? left : kChunk;
        for (int64_t i = 0; i < kLanes; ++i) {
            const From* from = src + i * args.src_stride + k;
            for (int64_t c = 0; c < columns; ++c) convert(from[c], chunk[i] + c);
        }
        transpose_units(chunk[0], kChunk, columns, dst + k / step * unit_stride, unit_stride);
    }
}

template <class From, class To>
void pack(const PackArgs& args) {
    const bool has_groups =
        args.first_row % kLanes == 0 && args.shape.k % args.shape.step() == 0;
    for_each(args.num_threads, ceil_div(args.rows, kLanes), true, [&](int64_t group) {
        const int64_t begin = group * kLanes;
        if (has_groups && begin + kLanes <= args.rows) return pack_row_group<From, To>(args, begin);
        for (int64_t row = begin; row < begin + kLanes && row < args.rows; ++row) {
            pack_row<From, To>(args, row);
        }
    });
}

template <class From>
void pack_from(const PackArgs& args) {
    args.shape.dtype == DType::kFloat32 ? pack<From, float>(args) : pack<From, Bf16>(args);
}

inline float not_a_number(const float*) { return __builtin_nanf(""); }
inline Bf16 not_a_number(const Bf16*) { return {0x7fc0}; }

template <class T>
void gather_row(const PackedGatherArgs& args, int64_t i) {
    constexpr int64_t step = 4 / sizeof(T);
    const PackedShape& shape = args.shape;
    T* out = static_cast<T*>(args.out) + i * args.out_stride;
    const int64_t row = args.ids[i];
    if (row < 0 || row >= shape.n) {
        for (int64_t k = 0; k < shape.k; ++k) out[k] = not_a_number(out);
        return;
    }
    const int64_t stride = shape.panel_width(row / kPanelRows) * step;
    const T* from = static_cast<const T*>(args.weight) + shape.row_offset(row);
    for (int64_t k = 0; k < shape.k; ++k) out[k] = from[k / step * stride + k % step];
}

}  // namespace

void pack_rows(const PackArgs& args) {
    if (args.src_dtype == DType::kFloat32) return pack_from<float>(args);
    if (args.src_dtype == DType::kBfloat16) return pack_from<Bf16>(args);
    pack_from<Half>(args);
}

void gather_packed_rows(const PackedGatherArgs& args) {
    const bool is_float = args.shape.dtype == DType::kFloat32;
    for_each(args.num_threads, args.num_ids, true, [&](int64_t i) {
        if (is_float) {
            gather_row<float>(args, i);
        } else {
            gather_row<Bf16>(args, i);
        }
    });
}

}  // namespace hal::cpu
