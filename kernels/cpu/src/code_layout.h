// Where codes and scales of a row stand in a stored weight: see QuantizedShape. Nothing here is of an
// instruction set; internal linkage, because every one includes it.
#pragma once

#include "code_tables.h"

namespace hal::cpu {
namespace {

// Scratch that a row is rounded into: a byte for each column and its padding, and of each group
// the bits of its scale and its zero point.
struct RoundedRow {
    uint8_t* codes;
    uint32_t* scales;  // float32, or bfloat16 in the upper half of it
    uint8_t* zeros;

    static constexpr int64_t bytes(int64_t columns) { return 3 * round_up(columns, 64) + 64; }
    // In memory of bytes(columns); no group is smaller than 32 columns.
    static RoundedRow in(char* memory, int64_t columns) {
        const int64_t padded = round_up(columns, 64);
        uint8_t* codes = reinterpret_cast<uint8_t*>(memory);
        return {codes, reinterpret_cast<uint32_t*>(codes + padded + 64), codes + 2 * padded + 64};
    }
};

inline uint8_t* strip_of(const void* weight, const QuantizedShape& shape, int64_t row) {
    return static_cast<uint8_t*>(const_cast<void*>(weight)) + row / kLanes * shape.strip_bytes();
}

// Codes of 4 columns of 8 bits of one row into the 64 bytes at `to`.
inline void store_unit8(Codes codes, uint32_t four, uint8_t* to, int64_t lane) {
    if (codes == Codes::kDots) {
        // Turning the highest bit over adds 128 to a code in two's complement.
        reinterpret_cast<uint32_t*>(to)[lane] = four ^ 0x80808080u;
        return;
    }
    uint16_t* pairs = reinterpret_cast<uint16_t*>(to) + lane / 4 * 8 + lane % 4;
    pairs[0] = uint16_t(four);
    pairs[4] = uint16_t(four >> 16);
}

// Every second byte of 8, of 4 bits each, side by side.
inline uint32_t every_second(uint64_t eight) {
    eight &= 0x000f000f000f000f;
    eight = (eight | eight >> 12) & 0x000000ff000000ff;
    return uint32_t((eight | eight >> 24) & 0xffff);
}

// Codes of 8 columns of 4 bits of one row into the 64 bytes at `to`.
inline void store_unit4(Codes codes, uint64_t eight, uint8_t* to, int64_t lane) {
    const uint32_t dots = uint32_t(eight) | uint32_t(eight >> 32) << 4;
    const uint32_t decoded = every_second(eight) | every_second(eight >> 8) << 16;
    reinterpret_cast<uint32_t*>(to)[lane] = codes == Codes::kDots ? dots : decoded;
}

inline void store_row8(const RoundedRow& row, const QuantizedShape& shape, uint8_t* strip, int64_t lane) {
    reinterpret_cast<uint32_t*>(strip)[lane] = row.scales[0];
    const uint32_t* units = reinterpret_cast<const uint32_t*>(row.codes);
    for (int64_t u = 0; u < shape.units(); ++u) {
        store_unit8(shape.codes, units[u], strip + shape.codes_at(u), lane);
    }
}

inline void store_row4(const RoundedRow& row, const QuantizedShape& shape, uint8_t* strip, int64_t lane) {
    for (int64_t group = 0; group < shape.groups(); ++group) {
        uint16_t* scales = reinterpret_cast<uint16_t*>(strip + shape.scales_at(group));
        scales[lane] = uint16_t(row.scales[group] >> 16);
        if (shape.has_zeros) strip[shape.zeros_at(group) + lane] = row.zeros[group];
    }
    const uint64_t* pairs = reinterpret_cast<const uint64_t*>(row.codes);
    for (int64_t u = 0; u < shape.units(); u += 2) {
        store_unit4(shape.codes, pairs[u / 2], strip + shape.codes_at(u), lane);
    }
}

// Column k of one lane of a strip of 8 bits a code.
inline float value8(const QuantizedShape& shape, const uint8_t* strip, int64_t lane, int64_t k) {
    const float scale = reinterpret_cast<const float*>(strip)[lane];
    const uint8_t* unit = strip + shape.codes_at(k / 4);
    if (shape.codes == Codes::kDots) {
        return float(unit[4 * lane + k % 4] - int(shape.offset())) * scale;
    }
    const int code = unit[lane / 4 * 16 + k % 4 / 2 * 8 + lane % 4 * 2 + k % 2];
    return float_of_code(shape.codes, code) * scale;
}

// The same of 4 bits.
inline float value4(const QuantizedShape& shape, const uint8_t* strip, int64_t lane, int64_t k) {
    const int64_t group = k / shape.group, c = k % 8;
    const uint32_t scale = reinterpret_cast<const uint16_t*>(strip + shape.scales_at(group))[lane];
    const int zero = shape.has_zeros ? strip[shape.zeros_at(group) + lane] : 8;
    const uint8_t* unit = strip + shape.codes_at(k / 8 * 2) + 4 * lane;
    const bool for_dots = shape.codes == Codes::kDots;
    const int pair = for_dots ? unit[c % 4] : unit[c % 2 * 2 + c / 4];
    const int shift = int(for_dots ? c / 4 * 4 : c % 4 / 2 * 4);
    return float((pair >> shift & 15) - zero) * __builtin_bit_cast(float, scale << 16);
}

// Where a logical row of n stands: gate and up rows alternate every 16 where gated.
inline int64_t stored_row(int64_t row, int64_t n, bool gated) {
    if (!gated) return row;
    const int64_t half = n / 2;
    const int64_t up = row >= half ? 1 : 0;
    row -= up * half;
    return (row / kLanes * 2 + up) * kLanes + row % kLanes;
}

}  // namespace
}  // namespace hal::cpu
