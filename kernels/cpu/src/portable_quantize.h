// Floats to codes, as hal/weights.py defines it, and back: see QuantizedShape for the layout.
#pragma once

#include "arena.h"
#include "portable_lanes.h"

namespace hal::cpu {
namespace {

inline constexpr float kSmallest = 1e-30f;
inline constexpr int32_t kInfinity = 0x7f800000;

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

// A row of any dtype, read as floats with zeros behind the last.
struct FloatRow {
    const void* values;
    DType dtype;
    int64_t columns;

    Floats load_at(int64_t k) const { return load(values, dtype, k, columns - k); }
    Ints largest_bits(int64_t first, int64_t end) const {
        Ints largest = splat(0);
        for (int64_t k = first; k < end; k += kWidth) {
            largest = max(largest, magnitude_bits(load_at(k)));
        }
        return largest;
    }
};

// A scale of 8-bit codes and its inverse.
struct Scale8 {
    float scale;
    float inverse;
};

inline Scale8 scale8(int32_t largest_bits) {
    const float largest = as_float(uint32_t(largest_bits));
    if (largest_bits >= kInfinity) return {__builtin_nanf(""), 0.0f};
    if (largest <= kSmallest) return {0.0f, 0.0f};
    return {largest / 127.0f, 127.0f / largest};
}

// The bits of a bfloat16 scale of 4-bit codes, and its inverse.
struct Scale4 {
    uint16_t bits;
    float inverse;
};

inline Scale4 scale4(float high, float low) {
    const float extreme = high >= -low ? high : low;
    if ((extreme < 0 ? -extreme : extreme) <= kSmallest) return {0, 0.0f};
    const uint32_t bits = bits_of(extreme / -8.0f);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {uint16_t(rounded), 1.0f / as_float(rounded << 16)};
}

// 0 for NaN, which is also what an infinity times its inverse of 0 is.
inline Ints rounded_codes(Floats v, float inverse) { return to_ints(v * splat(inverse)); }

// Fills codes with a byte for each column and padding; false if a value is not finite.
inline bool round8(const FloatRow& row, int64_t padded, uint8_t* codes, float* scale) {
    const Scale8 found = scale8(largest_of(row.largest_bits(0, row.columns)));
    *scale = found.scale;
    for (int64_t k = 0; k < padded; k += kWidth) {
        store_low_bytes(codes + k, add(rounded_codes(row.load_at(k), found.inverse), splat(128)));
    }
    return found.scale == found.scale;
}

inline Scale4 scale_of_group(const FloatRow& row, int64_t first, int64_t end) {
    alignas(64) float highs[kWidth], lows[kWidth];
    Floats high = row.load_at(first), low = high;
    for (int64_t k = first + kWidth; k < end; k += kWidth) {
        const Floats v = row.load_at(k);
        high = max(high, v);
        low = min(low, v);
    }
    store(highs, high);
    store(lows, low);
    for (int i = 1; i < kWidth; ++i) {
        highs[0] = highs[i] > highs[0] ? highs[i] : highs[0];
        lows[0] = lows[i] < lows[0] ? lows[i] : lows[0];
    }
    return scale4(highs[0], lows[0]);
}

// strip: where the scales go, as lane `lane` of each vector of them.
inline bool round4(const FloatRow& row, const QuantizedShape& shape, uint8_t* codes,
                   uint8_t* strip, int64_t lane) {
    const int64_t padded = 4 * shape.units();
    for (int64_t first = 0; first < padded; first += shape.group) {
        const int64_t end = first + shape.group < padded ? first + shape.group : padded;
        const Scale4 scale = scale_of_group(row, first, end);
        reinterpret_cast<uint16_t*>(strip + shape.scales_at(first / shape.group))[lane] =
            scale.bits;
        for (int64_t k = first; k < end; k += kWidth) {
            const Ints code = rounded_codes(row.load_at(k), scale.inverse);
            store_low_bytes(codes + k, add(max(min(code, splat(7)), splat(-8)), splat(8)));
        }
    }
    return largest_of(row.largest_bits(0, row.columns)) < kInfinity;
}

inline int64_t stored_row(const QuantizeArgs& args, int64_t row) {
    row += args.first_row;
    if (!args.gated) return row;
    const int64_t half = args.shape.n / 2;
    const int64_t up = row >= half ? 1 : 0;
    row -= up * half;
    return (row / kLanes * 2 + up) * kLanes + row % kLanes;
}

inline uint8_t* strip_of(const void* weight, const QuantizedShape& shape, int64_t row) {
    return static_cast<uint8_t*>(const_cast<void*>(weight)) + row / kLanes * shape.strip_bytes();
}

inline bool quantize_row(const QuantizeArgs& args, int64_t row, uint8_t* codes) {
    const QuantizedShape& shape = args.shape;
    const int64_t element = args.src_dtype == DType::kFloat32 ? 4 : 2;
    const FloatRow source{static_cast<const char*>(args.src) + row * args.src_stride * element,
                          args.src_dtype, shape.k};
    const int64_t to = stored_row(args, row), lane = to % kLanes;
    uint8_t* strip = strip_of(args.dst, shape, to);
    const uint32_t* units = reinterpret_cast<const uint32_t*>(codes);
    if (shape.is_int4()) {
        const bool finite = round4(source, shape, codes, strip, lane);
        for (int64_t u = 0; u < shape.units(); u += 2) {
            uint32_t* packed = reinterpret_cast<uint32_t*>(strip + shape.codes_at(u));
            packed[lane] = units[u] | units[u + 1] << 4;
        }
        return finite;
    }
    float* scale = reinterpret_cast<float*>(strip) + lane;
    const bool finite = round8(source, 4 * shape.units(), codes, scale);
    uint32_t* packed = reinterpret_cast<uint32_t*>(strip + shape.codes_at(0)) + lane;
    for (int64_t u = 0; u < shape.units(); ++u) packed[u * kLanes] = units[u];
    return finite;
}

int64_t run_quantize_rows(const QuantizeArgs& args) {
    const int64_t groups = ceil_div(args.rows, kLanes);
    int64_t num_bad = 0;
    for_each_range(args.num_threads, groups, [&](const Range& range) {
        Arena arena;
        uint8_t* codes = reinterpret_cast<uint8_t*>(arena.reserve(4 * args.shape.units() + 64));
        const int64_t last = range.end * kLanes;
        const int64_t end = last < args.rows ? last : args.rows;
        for (int64_t row = range.begin * kLanes; row < end; ++row) {
            if (!quantize_row(args, row, codes)) {
                __atomic_fetch_add(&num_bad, 1, __ATOMIC_RELAXED);
            }
        }
    });
    return num_bad;
}

// Column k of one lane of a strip.
inline float value_at(const QuantizedShape& shape, const uint8_t* strip, int64_t lane, int64_t k) {
    if (!shape.is_int4()) {
        const int code = strip[shape.codes_at(k / 4) + 4 * lane + k % 4];
        return float(code - int(shape.offset())) * reinterpret_cast<const float*>(strip)[lane];
    }
    const uint8_t* scales = strip + shape.scales_at(k / shape.group);
    const uint32_t scale = reinterpret_cast<const uint16_t*>(scales)[lane];
    const int pair = strip[shape.codes_at(k / 8 * 2) + 4 * lane + k % 4];
    const int code = pair >> (k % 8 / 4 * 4) & 15;
    return float(code - int(shape.offset())) * as_float(scale << 16);
}

inline void gather_row(const QuantizedGatherArgs& args, int64_t i) {
    const QuantizedShape& shape = args.shape;
    const int64_t row = args.ids[i], lane = row % kLanes;
    const bool known = row >= 0 && row < shape.n;
    const uint8_t* strip = known ? strip_of(args.weight, shape, row) : nullptr;
    alignas(64) float values[kWidth] = {};
    for (int64_t k = 0; k < shape.k; k += kWidth) {
        for (int64_t j = 0; j < kWidth && k + j < shape.k; ++j) {
            values[j] = known ? value_at(shape, strip, lane, k + j) : __builtin_nanf("");
        }
        store(args.out, args.out_dtype, i * args.out_stride + k, load(values), shape.k - k);
    }
}

void run_gather_quantized_rows(const QuantizedGatherArgs& args) {
    for_each(args.num_threads, args.num_ids, true, [&](int64_t i) { gather_row(args, i); });
}

}  // namespace
}  // namespace hal::cpu
