// Packed weights: plain copies, which need no more than any CPU of the architecture has.
#include "kernels.h"
#include "threads.h"

namespace hal::cpu {
namespace {

inline float as_float(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounded to nearest even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    if (value != value) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Moves the exponent's bias from 15 to 127; below the smallest normal half the hidden bit that this
// adds is taken off again.
inline float from_half(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = uint32_t(half & 0x7fff) << 13;
    if (magnitude >= 0x0f800000) return as_float(sign | (magnitude + 0x70000000));
    if (magnitude < 0x00800000) {
        const float value = as_float(magnitude + 0x38800000) - as_float(0x38800000);
        return sign != 0 ? -value : value;
    }
    return as_float(sign | (magnitude + 0x38000000));
}

inline float to_float(const PackArgs& args, int64_t index) {
    switch (args.src_dtype) {
        case DType::kFloat32:
            return static_cast<const float*>(args.src)[index];
        case DType::kBfloat16:
            return as_float(uint32_t(static_cast<const Bf16*>(args.src)[index].bits) << 16);
        default:
            break;
    }
    return from_half(static_cast<const uint16_t*>(args.src)[index]);
}

int64_t destination_row(const PackArgs& args, int64_t row) {
    row += args.first_row;
    if (!args.gated) return row;
    const int64_t half = args.shape.n / 2;
    const int64_t up = row >= half ? 1 : 0;
    row -= up * half;
    return (row / kLanes * 2 + up) * kLanes + row % kLanes;
}

void pack_row(const PackArgs& args, int64_t row) {
    const PackedShape& shape = args.shape;
    const int64_t dst_row = destination_row(args, row);
    const int64_t unit_stride = shape.panel_width(dst_row / kPanelRows) * shape.step();
    const int64_t base = shape.row_offset(dst_row);
    for (int64_t k = 0; k < shape.k; ++k) {
        const int64_t index = base + k / shape.step() * unit_stride + k % shape.step();
        const int64_t source = row * args.src_stride + k;
        if (shape.dtype == DType::kFloat32) {
            static_cast<float*>(args.dst)[index] = to_float(args, source);
        } else if (args.src_dtype == DType::kBfloat16) {
            // Bits are copied as they are: no conversion may flush a denormal weight.
            static_cast<Bf16*>(args.dst)[index] = static_cast<const Bf16*>(args.src)[source];
        } else {
            static_cast<Bf16*>(args.dst)[index].bits = to_bf16(to_float(args, source));
        }
    }
}

// 16 rows that stay together in the destination, same dtype: units of 4 bytes change places as they are.
void pack_row_group(const PackArgs& args, int64_t row) {
    const PackedShape& shape = args.shape;
    const int64_t dst_row = destination_row(args, row);
    const int64_t unit_bytes = shape.panel_width(dst_row / kPanelRows) * 4;
    const int64_t element_bytes = 4 / shape.step();
    const int64_t row_bytes = args.src_stride * element_bytes;
    char* dst = static_cast<char*>(args.dst) + shape.row_offset(dst_row) * element_bytes;
    const char* src = static_cast<const char*>(args.src) + row * row_bytes;
    const int64_t units = shape.k / shape.step();
    for (int64_t u = 0; u < units; ++u) {
        for (int64_t i = 0; i < kLanes; ++i) {
            __builtin_memcpy(dst + u * unit_bytes + i * 4, src + i * row_bytes + u * 4, 4);
        }
    }
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
    const int64_t groups = ceil_div(args.rows, kLanes);
    const bool transposable = args.src_dtype == args.shape.dtype && args.first_row % kLanes == 0 &&
                              args.shape.k % args.shape.step() == 0;
    for_each(args.num_threads, groups, true, [&](int64_t group) {
        const int64_t begin = group * kLanes;
        if (transposable && begin + kLanes <= args.rows) return pack_row_group(args, begin);
        for (int64_t row = begin; row < begin + kLanes && row < args.rows; ++row) {
            pack_row(args, row);
        }
    });
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
