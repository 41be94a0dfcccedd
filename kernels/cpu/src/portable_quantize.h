// Floats to codes, as hal/weights.py defines it, and back.
#pragma once

#include "arena.h"
#include "code_layout.h"
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

// A bfloat16 scale of 4-bit codes, as the bits of a float32, and its inverse.
struct Scale4 {
    uint32_t bits;
    float inverse;
};

inline Scale4 scale4(float exact) {
    const uint32_t bits = bits_of(exact);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16 << 16;
    return {rounded, 1.0f / as_float(rounded)};
}

// 0 for NaN, which is also what an infinity times its inverse of 0 is.
inline Ints rounded_codes(Floats v, float inverse) { return to_ints(v * splat(inverse)); }

inline bool is_finite(const FloatRow& row) {
    return largest_of(row.largest_bits(0, row.columns)) < kInfinity;
}

// int8 in two's complement, of `padded` columns; false if a value is not finite.
inline bool round_int8(const FloatRow& row, int64_t padded, const RoundedRow& to) {
    const Scale8 found = scale8(largest_of(row.largest_bits(0, row.columns)));
    to.scales[0] = bits_of(found.scale);
    for (int64_t k = 0; k < padded; k += kWidth) {
        store_low_bytes(to.codes + k, rounded_codes(row.load_at(k), found.inverse));
    }
    return found.scale == found.scale;
}

inline void sign_and_magnitude(uint8_t* codes, int64_t padded) {
    for (int64_t k = 0; k < padded; ++k) {
        const int code = static_cast<int8_t>(codes[k]);
        codes[k] = uint8_t(code < 0 ? 0x80 | -code : code);
    }
}

// Bits of the nearest e4m3 to each value of magnitude up to 448 and a little. From 2^-6 on the upper
// bits of a float are those of an e4m3, but for the exponent's bias; below, it counts in 2^-9.
inline Ints fp8_codes(Floats v) {
    const Ints magnitude = magnitude_bits(v);
    const Ints odd = bit_and(shift_right<20>(magnitude), splat(1));
    const Ints upper = shift_right<20>(add(magnitude, add(odd, splat(0x7ffff))));
    const Ints normal = sub(upper, splat(120 << 3));
    const Ints steps = to_ints(as_floats(magnitude) * splat(512.0f));
    const Ints is_normal = is_greater(magnitude, splat(((127 - 6) << 23) - 1));
    const Ints held = min(choose(is_normal, normal, steps), splat(0x7e));
    return bit_or(held, bit_and(shift_right<24>(as_ints(v)), splat(0x80)));
}

inline bool round_fp8(const FloatRow& row, int64_t padded, const RoundedRow& to) {
    const int32_t bits = largest_of(row.largest_bits(0, row.columns));
    const float largest = as_float(uint32_t(bits));
    const bool zero = bits >= kInfinity || largest <= kSmallest;
    to.scales[0] = zero ? 0 : bits_of(largest / 448.0f);
    const Floats inverse = splat(zero ? 0.0f : 448.0f / largest);
    for (int64_t k = 0; k < padded; k += kWidth) {
        store_low_bytes(to.codes + k, zero ? splat(0) : fp8_codes(row.load_at(k) * inverse));
    }
    return bits < kInfinity;
}

// Scale, inverse and zero point of a group from its largest and least value.
struct Group4 {
    Scale4 scale;
    int32_t zero;
};

inline Group4 symmetric(float high, float low) {
    const float extreme = high >= -low ? high : low;
    if ((extreme < 0 ? -extreme : extreme) <= kSmallest) return {{0, 0.0f}, 8};
    return {scale4(extreme / -8.0f), 8};
}

inline Group4 with_zero(float high, float low) {
    high = high > 0 ? high : 0;
    low = low < 0 ? low : 0;
    if (high - low <= kSmallest) return {{0, 0.0f}, 0};
    const Scale4 scale = scale4(high / 15.0f - low / 15.0f);
    const Ints zero = rounded_codes(splat(-low), scale.inverse);
    return {scale, largest_of(min(zero, splat(15)))};
}

inline Group4 range_of_group(const FloatRow& row, int64_t first, int64_t end, bool has_zeros) {
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
    return has_zeros ? with_zero(highs[0], lows[0]) : symmetric(highs[0], lows[0]);
}

// Codes 0 to 15 of whole groups' columns: the code + 8, or + the group's zero point.
inline bool round_int4(const FloatRow& row, const QuantizedShape& shape, const RoundedRow& to) {
    const int64_t padded = 4 * shape.units();
    for (int64_t first = 0; first < padded; first += shape.group) {
        const int64_t end = first + shape.group < padded ? first + shape.group : padded;
        const Group4 found = range_of_group(row, first, end, shape.has_zeros);
        to.scales[first / shape.group] = found.scale.bits;
        to.zeros[first / shape.group] = uint8_t(found.zero);
        for (int64_t k = first; k < end; k += kWidth) {
            const Ints code = rounded_codes(row.load_at(k), found.scale.inverse);
            const Ints held = max(add(code, splat(found.zero)), splat(0));
            store_low_bytes(to.codes + k, min(held, splat(15)));
        }
    }
    return is_finite(row);
}

inline bool round_row(const FloatRow& row, const QuantizedShape& shape, const RoundedRow& to) {
    if (shape.is_int4()) return round_int4(row, shape, to);
    const int64_t padded = 4 * shape.units();
    if (shape.codes == Codes::kDecodedFp8) return round_fp8(row, padded, to);
    const bool finite = round_int8(row, padded, to);
    if (shape.codes == Codes::kDecoded) sign_and_magnitude(to.codes, padded);
    return finite;
}

inline bool quantize_row(const QuantizeArgs& args, int64_t row, const RoundedRow& rounded) {
    const QuantizedShape& shape = args.shape;
    const int64_t element = args.src_dtype == DType::kFloat32 ? 4 : 2;
    const FloatRow source{static_cast<const char*>(args.src) + row * args.src_stride * element,
                          args.src_dtype, shape.k};
    const int64_t to = stored_row(args.first_row + row, shape.n, args.gated);
    const bool finite = round_row(source, shape, rounded);
    const auto store_row = shape.is_int4() ? store_row4 : store_row8;
    store_row(rounded, shape, strip_of(args.dst, shape, to), to % kLanes);
    return finite;
}

inline int64_t run_quantize_rows(const QuantizeArgs& args) {
    const int64_t groups = ceil_div(args.rows, kLanes), padded = 4 * args.shape.units();
    int64_t num_bad = 0;
    for_each_range(args.num_threads, groups, [&](const Range& range) {
        Arena arena;
        const RoundedRow rounded = RoundedRow::in(arena.reserve(RoundedRow::bytes(padded)), padded);
        const int64_t last = range.end * kLanes;
        const int64_t end = last < args.rows ? last : args.rows;
        for (int64_t row = range.begin * kLanes; row < end; ++row) {
            if (!quantize_row(args, row, rounded)) {
                __atomic_fetch_add(&num_bad, 1, __ATOMIC_RELAXED);
            }
        }
    });
    return num_bad;
}

inline void gather_row(const QuantizedGatherArgs& args, int64_t i) {
    const QuantizedShape& shape = args.shape;
    const int64_t row = args.ids[i], lane = row % kLanes;
    const bool known = row >= 0 && row < shape.n;
    const uint8_t* strip = known ? strip_of(args.weight, shape, row) : nullptr;
    const auto value = shape.is_int4() ? value4 : value8;
    alignas(64) float values[kWidth] = {};
    for (int64_t k = 0; k < shape.k; k += kWidth) {
        for (int64_t j = 0; j < kWidth && k + j < shape.k; ++j) {
            values[j] = known ? value(shape, strip, lane, k + j) : __builtin_nanf("");
        }
        store(args.out, args.out_dtype, i * args.out_stride + k, load(values), shape.k - k);
    }
}

inline void run_gather_quantized_rows(const QuantizedGatherArgs& args) {
    for_each(args.num_threads, args.num_ids, true, [&](int64_t i) { gather_row(args, i); });
}

}  // namespace
}  // namespace hal::cpu
