// Stored codes to pairs of bfloat16 by look-up in registers: see QuantizedShape for the layout.
// Scales come later, in float32. Needs VBMI beside what *_avx512.cpp files may use.
#pragma once

#include "code_tables.h"
#include "simd_avx512.h"

namespace hal::cpu {
namespace {

// A sign and a magnitude of 7 bits: the magnitude chooses both bytes of a bfloat16.
class ByteDecoder {
  public:
    static constexpr int kPairs = 2;  // of columns in 64 bytes, for each of 16 rows
    static constexpr int kColumns = 2 * kPairs;
    static constexpr bool kHasZeros = false;

    explicit ByteDecoder(const QuantizedShape& shape) {
        const ByteTable& table = table_of(shape.codes);
        for (int i = 0; i < 2; ++i) {
            low_[i] = _mm512_load_si512(table.low + 64 * i);
            high_[i] = _mm512_load_si512(table.high + 64 * i);
        }
    }
    static __m512 scales(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }

    inline void decode(const uint8_t* p, __m512i, __m512i* pairs) const {
        const __m512i codes = _mm512_loadu_si512(p);
        const __m512i low = _mm512_permutex2var_epi8(low_[0], codes, low_[1]);
        const __m512i magnitude = _mm512_permutex2var_epi8(high_[0], codes, high_[1]);
        constexpr int kOrAnd = 0xf8;  // a | (b & c)
        const __m512i high = _mm512_ternarylogic_epi32(magnitude, codes,
                                                       _mm512_set1_epi8(char(0x80)), kOrAnd);
        pairs[0] = _mm512_unpacklo_epi8(low, high);
        pairs[1] = _mm512_unpackhi_epi8(low, high);
    }

  private:
    __m512i low_[2];
    __m512i high_[2];
};

template <bool kZeros>
class NibbleDecoder {
  public:
    static constexpr int kPairs = 4;
    static constexpr int kColumns = 2 * kPairs;
    static constexpr bool kHasZeros = kZeros;

    explicit NibbleDecoder(const QuantizedShape&) {
        table_ = _mm512_load_si512(kWordTable<kZeros>.words);
    }
    static __m512 scales(const uint8_t* p) { return load(reinterpret_cast<const Bf16*>(p)); }

    inline void decode(const uint8_t* p, __m512i zeros, __m512i* pairs) const {
        const __m512i codes = _mm512_loadu_si512(p);
#pragma GCC unroll 4
        for (int i = 0; i < kPairs; ++i) {
            __m512i index = _mm512_srli_epi16(codes, 4 * i);
            if constexpr (kZeros) {
                index = _mm512_sub_epi16(_mm512_and_si512(index, _mm512_set1_epi16(15)), zeros);
            }
            pairs[i] = _mm512_permutexvar_epi16(index, table_);
        }
    }

  private:
    __m512i table_;
};

// Each row's zero point in both words of its lane.
inline __m512i zero_points(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m512i low = _mm512_cvtepu8_epi32(bytes);
    return _mm512_or_si512(low, _mm512_slli_epi32(low, 16));
}

// 16 rows of a weight, group by group.
struct Strip {
    const QuantizedShape& shape;
    const uint8_t* begin;

    Strip(const QuantizedShape& shape, const void* weight, int64_t index)
        : shape(shape),
          begin(static_cast<const uint8_t*>(weight) + index * shape.strip_bytes()) {}

    Strip after(int64_t count) const { return {shape, begin, count}; }
    // Columns from the start of a group to the next.
    int64_t depth() const { return shape.is_int4() ? shape.group : 4 * shape.units(); }
    const uint8_t* codes(int64_t group) const {
        return begin + shape.codes_at(group * (depth() / 4));
    }
    // How many times 64 bytes of codes a group has.
    int64_t units(int64_t group) const {
        const int64_t left = 4 * shape.units() - group * depth();
        return (left < depth() ? left : depth()) / (shape.is_int4() ? 8 : 4);
    }
    // Where a group's scales stand in every strip, and its zero points.
    int64_t scales_at(int64_t group) const {
        return shape.is_int4() ? shape.scales_at(group) : 0;
    }
    int64_t zeros_at(int64_t group) const { return shape.has_zeros ? shape.zeros_at(group) : 0; }
};

}  // namespace
}  // namespace hal::cpu
