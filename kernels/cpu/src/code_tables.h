// What stored codes stand for: see QuantizedShape.
//
// Every code of every format is a bfloat16 exactly: int8 and int4 codes are whole numbers of at most
// 8 bits, and an e4m3 has fewer bits of exponent and mantissa.
#pragma once

#include "kernels.h"

namespace hal::cpu {
namespace {

// Bits of the bfloat16 that a float is, of those that are one.
constexpr uint16_t bf16_of(float value) {
    return uint16_t(__builtin_bit_cast(uint32_t, value) >> 16);
}

constexpr float fp8_magnitude(int bits) {
    const int exponent = bits >> 3, mantissa = bits & 7;
    float value = exponent == 0 ? float(mantissa) : float(8 + mantissa);
    for (int e = exponent == 0 ? 1 : exponent; e < 10; ++e) value /= 2;
    for (int e = 10; e < exponent; ++e) value *= 2;
    return value;
}

// The bytes of the bfloat16 of each magnitude of 7 bits.
struct ByteTable {
    alignas(64) uint8_t low[128];
    alignas(64) uint8_t high[128];
};

constexpr ByteTable byte_table(Codes codes) {
    ByteTable table{};
    for (int i = 0; i < 128; ++i) {
        const uint16_t bits = bf16_of(codes == Codes::kDecodedFp8 ? fp8_magnitude(i) : float(i));
        table.low[i] = uint8_t(bits & 0xff);
        table.high[i] = uint8_t(bits >> 8);
    }
    return table;
}

inline constexpr ByteTable kInt8Table = byte_table(Codes::kDecoded);
inline constexpr ByteTable kFp8Table = byte_table(Codes::kDecodedFp8);

inline const ByteTable& table_of(Codes codes) {
    return codes == Codes::kDecodedFp8 ? kFp8Table : kInt8Table;
}

// Of a sign and a magnitude.
inline uint16_t bf16_of_code(Codes codes, int code) {
    const ByteTable& table = table_of(codes);
    const int high = table.high[code & 0x7f] | (code & 0x80);
    return uint16_t(high << 8 | table.low[code & 0x7f]);
}

inline float float_of_code(Codes codes, int code) {
    return __builtin_bit_cast(float, uint32_t(bf16_of_code(codes, code)) << 16);
}

struct WordTable {
    alignas(64) uint16_t words[32];
};

// Without zero points the fifth bit of an index is the next code's and must not matter. With them
// an index is a code less its zero point, modulo 32.
constexpr WordTable word_table(bool has_zeros) {
    WordTable table{};
    for (int i = 0; i < 32; ++i) {
        table.words[i] = bf16_of(float(has_zeros ? (i < 16 ? i : i - 32) : i % 16 - 8));
    }
    return table;
}

template <bool kZeros>
inline constexpr WordTable kWordTable = word_table(kZeros);

}  // namespace
}  // namespace hal::cpu
