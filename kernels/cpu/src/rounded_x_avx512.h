// Rounds x of a product with codes.
#pragma once

#include "quantize_avx512.h"
#include "rounded_x.h"

namespace hal::cpu {
namespace {

constexpr int64_t kTileTokens = 16;

using Tiling = TilesOf<kTileTokens>;

inline FloatRow row_of(const QuantizedLinearArgs& args, int64_t token) {
    const int64_t element = args.x_dtype == DType::kFloat32 ? 4 : 2;
    return {static_cast<const char*>(args.x) + token * args.x_stride * element, args.x_dtype,
            args.shape.k};
}

// int8: one scale for a token.

// Codes of 16 columns of one token; returns their sum.
inline int store_codes(int32_t* to, int64_t stride, int64_t units, __m512i codes) {
    const __m128i bytes = _mm512_cvtepi32_epi8(codes);
    alignas(16) int32_t lanes[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), bytes);
    for (int64_t i = 0; i < 4 && i < units; ++i) to[i * stride] = lanes[i];
    return _mm512_reduce_add_epi32(codes);
}

inline void round_token8(const QuantizedLinearArgs& args, int64_t token) {
    const Tiling tiling{args};
    const Tile tile = tiling.tile(tiling.index_of(token));
    const QuantizedShape& shape = args.shape;
    const FloatRow row = row_of(args, token);
    const int64_t m = token - tile.tokens.begin;
    __m512i largest = _mm512_setzero_si512();
    for (int64_t k = 0; k < row.columns; k += kLanes) {
        largest = _mm512_max_epu32(largest, magnitude_bits(row.load16(k)));
    }
    const Scale8 scale = scale8(_mm512_reduce_max_epu32(largest));
    int sum = 0;
    for (int64_t u = 0; u < shape.units(); u += 4) {
        const __m512i codes = rounded_codes(row.load16(4 * u), scale.inverse);
        sum += store_codes(tile.codes + u * tile.size() + m, tile.size(), shape.units() - u, codes);
    }
    tile.scales[m] = scale.scale;
    tile.offsets[m] = -int(shape.offset()) * sum;
}

// int4: a scale for every 32 columns of a token. All tokens of a tile are rounded together, in
// chunks of 64 columns, so that scales, sums and stores are of 16 tokens at a time.

constexpr int64_t kChunk = 64;
constexpr int64_t kChunkUnits = kChunk / 4;
constexpr int64_t kAheadBytes = 512;

inline int64_t num_chunks(const QuantizedShape& shape) { return ceil_div(shape.x_groups(), 2); }

// Columns first.. of every token of a tile; zeros stand for what lies behind the last column.
template <class T>
struct Chunk {
    const T* x;
    int64_t stride;
    __mmask16 masks[4];

    Chunk(const QuantizedLinearArgs& args, const Tile& tile, int64_t first)
        : x(static_cast<const T*>(args.x) + tile.tokens.begin * args.x_stride + first),
          stride(args.x_stride) {
        for (int64_t q = 0; q < 4; ++q) {
            const int64_t left = args.shape.k - first - q * kLanes;
            masks[q] = left > 0 ? tail_mask(left) : __mmask16(0);
        }
    }
    __m512 part(int64_t m, int q) const { return load(x + m * stride + q * kLanes, masks[q]); }
    // Sixteen rows are more streams than the hardware's prefetchers follow.
    void prefetch(int64_t m, int half) const {
        const char* p = reinterpret_cast<const char*>(x + m * stride + 2 * half * kLanes);
        _mm_prefetch(p + kAheadBytes, _MM_HINT_T0);
    }
    // Of one half's 32 columns, to be reduced over lanes.
    __m512i magnitudes(int64_t m, int half) const {
        return _mm512_max_epu32(magnitude_bits(part(m, 2 * half)),
                                magnitude_bits(part(m, 2 * half + 1)));
    }
    // Dword 4 i + q holds unit 4 q + i.
    __m512i codes(int64_t m, float inverse0, float inverse1) const {
        const __m512i a = _mm512_packs_epi32(rounded_codes(part(m, 0), inverse0),
                                             rounded_codes(part(m, 1), inverse0));
        const __m512i b = _mm512_packs_epi32(rounded_codes(part(m, 2), inverse1),
                                             rounded_codes(part(m, 3), inverse1));
        return _mm512_packs_epi16(a, b);
    }
};

inline int64_t unit_of(int64_t dword) { return 4 * (dword % 4) + dword / 4; }

// scale8 of 16 largest magnitudes.
inline void scales8(__m512i largest_bits, __m512* scale, __m512* inverse) {
    const __m512 largest = _mm512_castsi512_ps(largest_bits);
    const __mmask16 bad =
        _mm512_cmpge_epu32_mask(largest_bits, _mm512_set1_epi32(int(kInfinity)));
    const __mmask16 zero = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(kSmallest), _CMP_LE_OQ);
    const __m512 most = _mm512_set1_ps(127.0f);
    *scale = _mm512_mask_mov_ps(_mm512_maskz_div_ps(__mmask16(~zero), largest, most), bad,
                                _mm512_set1_ps(__builtin_nanf("")));
    *inverse = _mm512_maskz_div_ps(__mmask16(~(zero | bad)), most, largest);
}

// Lane m: the largest lane of row m.
inline __m512i largest_of_rows(__m512i rows[kTileTokens]) {
    transpose16(rows);
    __m512i largest = rows[0];
    for (int i = 1; i < kTileTokens; ++i) largest = _mm512_max_epu32(largest, rows[i]);
    return largest;
}

template <class T>
void round_chunk4(const QuantizedLinearArgs& args, const Tile& tile, int64_t index) {
    const QuantizedShape& shape = args.shape;
    const int64_t size = tile.size();
    const __mmask16 tokens = tail_mask(size);
    const int64_t halves = shape.x_groups() - 2 * index < 2 ? 1 : 2;
    const Chunk<T> chunk(args, tile, index * kChunk);
    alignas(64) float inverses[2][kTileTokens] = {};
    __m512i rows[kTileTokens] = {};
    for (int64_t half = 0; half < halves; ++half) {
        for (int64_t m = 0; m < size; ++m) {
            chunk.prefetch(m, int(half));
            rows[m] = chunk.magnitudes(m, int(half));
        }
        __m512 scale, inverse;
        scales8(largest_of_rows(rows), &scale, &inverse);
        _mm512_mask_storeu_ps(tile.scales + (2 * index + half) * size, tokens, scale);
        _mm512_store_ps(inverses[half], inverse);
    }
    for (int64_t m = 0; m < size; ++m) {
        rows[m] = chunk.codes(m, inverses[0][m], inverses[1][m]);
    }
    transpose16(rows);
    __m512i sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t i = 0; i < kChunkUnits; ++i) {
        const int64_t unit = unit_of(i);
        const int64_t half = unit / 8;
        if (half >= halves) continue;
        sums[half] = _mm512_dpbusd_epi32(sums[half], _mm512_set1_epi8(1), rows[i]);
        _mm512_mask_storeu_epi32(tile.codes + (index * kChunkUnits + unit) * size, tokens, rows[i]);
    }
    const __m512i offset = _mm512_set1_epi32(-int(shape.offset()));
    for (int64_t half = 0; half < halves; ++half) {
        _mm512_mask_storeu_epi32(tile.offsets + (2 * index + half) * size, tokens,
                                 _mm512_mullo_epi32(sums[half], offset));
    }
}

// The same for a tile of one token.
template <class T>
void round_chunk4_alone(const QuantizedLinearArgs& args, const Tile& tile, int64_t index) {
    const QuantizedShape& shape = args.shape;
    const int64_t halves = shape.x_groups() - 2 * index < 2 ? 1 : 2;
    const Chunk<T> chunk(args, tile, index * kChunk);
    Scale8 scales[2] = {};
    for (int64_t half = 0; half < halves; ++half) {
        scales[half] = scale8(_mm512_reduce_max_epu32(chunk.magnitudes(0, int(half))));
        tile.scales[2 * index + half] = scales[half].scale;
    }
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // its own inverse
    const __m512i codes = _mm512_permutexvar_epi32(
        order, chunk.codes(0, scales[0].inverse, scales[1].inverse));
    const __m512i sums =
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes);
    for (int64_t half = 0; half < halves; ++half) {
        const __mmask16 mask = __mmask16(0xff << (8 * half));
        _mm512_mask_storeu_epi32(tile.codes + index * kChunkUnits, mask, codes);
        tile.offsets[2 * index + half] =
            -int(shape.offset()) * _mm512_mask_reduce_add_epi32(mask, sums);
    }
}

template <class T>
void round_share4(const QuantizedLinearArgs& args, int64_t index, int64_t parts) {
    const Tiling tiling{args};
    const int64_t chunks = num_chunks(args.shape);
    const Range mine = share(tiling.count * chunks, index, parts);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        const Tile tile = tiling.tile(i / chunks);
        if (tile.size() == 1) {
            round_chunk4_alone<T>(args, tile, i % chunks);
        } else {
            round_chunk4<T>(args, tile, i % chunks);
        }
    }
}

// Share `index` of `parts` of the work; no part reads what another writes.
inline void round_x(const QuantizedLinearArgs& args, int64_t index, int64_t parts) {
    if (!args.shape.is_int4()) {
        const Range tokens = share(args.m, index, parts);
        for (int64_t token = tokens.begin; token < tokens.end; ++token) round_token8(args, token);
        return;
    }
    if (args.x_dtype == DType::kBfloat16) return round_share4<Bf16>(args, index, parts);
    round_share4<float>(args, index, parts);
}

}  // namespace
}  // namespace hal::cpu
