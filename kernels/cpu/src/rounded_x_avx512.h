// Rounds x of a product with codes, each part of it when the first thread needs it.
#pragma once

#include "norm_rows_avx512.h"
#include "on_demand.h"
#include "quantize_avx512.h"
#include "rounded_x.h"

namespace hal::cpu {
namespace {

constexpr int64_t kTileTokens = 16;

using Tiling = TilesOf<kTileTokens>;

// Tokens of a tile that are rounded together, so that scales, sums and stores are of up to 16 tokens
// at a time. `of`: which they are in their tile.
struct Part {
    Tile tile;
    Range of;

    int64_t size() const { return of.end - of.begin; }
    Range tokens() const { return {tile.tokens.begin + of.begin, tile.tokens.begin + of.end}; }
    // Where these tokens stand in a row of what belongs to the tile.
    template <class U>
    U* in(U* rows, int64_t row) const {
        return rows + row * tile.size() + of.begin;
    }
};

// Columns are read in chunks, of which each half has a scale of its own in int4.
constexpr int64_t kChunk = 64;
constexpr int64_t kChunkUnits = kChunk / 4;
constexpr int64_t kAheadBytes = 512;

// One chunk of every token; zeros stand for what lies behind the last column.
template <class T>
struct Chunk {
    const T* x;
    int64_t stride;
    __mmask16 masks[4];

    Chunk(const QuantizedLinearArgs& args, const Part& part, int64_t index)
        : x(static_cast<const T*>(args.x) + part.tokens().begin * args.x_stride + index * kChunk),
          stride(args.x_stride) {
        for (int64_t q = 0; q < 4; ++q) {
            const int64_t left = args.shape.k - index * kChunk - q * kLanes;
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

// Of every token of a part.
struct Scales {
    __m512 scale;
    alignas(64) float inverse[kTileTokens];

    explicit Scales(__m512i largest_bits) {
        __m512 inverses;
        scales8(largest_bits, &scale, &inverses);
        _mm512_store_ps(inverse, inverses);
    }
};

// Sums of codes, a lane for every token.
struct HalfSums {
    __m512i half[2];
};

// Stores the codes of a chunk; returns the sums of its halves.
template <class T>
HalfSums store_chunk(const QuantizedShape& shape, const Part& part, int64_t index,
                     const Chunk<T>& chunk, const float* inverse0, const float* inverse1) {
    const __mmask16 tokens = tail_mask(part.size());
    const int64_t units = shape.units() - index * kChunkUnits;
    __m512i rows[kTileTokens] = {};
    for (int64_t m = 0; m < part.size(); ++m) rows[m] = chunk.codes(m, inverse0[m], inverse1[m]);
    transpose16(rows);
    HalfSums sums{{_mm512_setzero_si512(), _mm512_setzero_si512()}};
    for (int64_t i = 0; i < kChunkUnits; ++i) {
        const int64_t unit = unit_of(i);
        if (unit >= units) continue;
        __m512i& sum = sums.half[unit / 8];
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), rows[i]);
        _mm512_mask_storeu_epi32(part.in(part.tile.codes, index * kChunkUnits + unit), tokens,
                                 rows[i]);
    }
    return sums;
}

inline void store_scales(const QuantizedShape& shape, const Part& part, int64_t group,
                         __m512 scale, __m512i sum) {
    const __mmask16 tokens = tail_mask(part.size());
    const __m512i offset = _mm512_set1_epi32(-int(shape.offset()));
    _mm512_mask_storeu_ps(part.in(part.tile.scales, group), tokens, scale);
    _mm512_mask_storeu_epi32(part.in(part.tile.offsets, group), tokens,
                             _mm512_mullo_epi32(sum, offset));
}

// int8: one scale for a token.
template <class T>
void round_part8(const QuantizedLinearArgs& args, const Part& part) {
    const int64_t chunks = ceil_div(args.shape.units(), kChunkUnits);
    __m512i rows[kTileTokens] = {};
    for (int64_t i = 0; i < chunks; ++i) {
        const Chunk<T> chunk(args, part, i);
        for (int64_t m = 0; m < part.size(); ++m) {
            chunk.prefetch(m, 0);
            chunk.prefetch(m, 1);
            const __m512i both = _mm512_max_epu32(chunk.magnitudes(m, 0), chunk.magnitudes(m, 1));
            rows[m] = _mm512_max_epu32(rows[m], both);
        }
    }
    const Scales scales(largest_of_rows(rows));
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < chunks; ++i) {
        const HalfSums sums = store_chunk(args.shape, part, i, Chunk<T>(args, part, i),
                                          scales.inverse, scales.inverse);
        sum = _mm512_add_epi32(sum, _mm512_add_epi32(sums.half[0], sums.half[1]));
    }
    store_scales(args.shape, part, 0, scales.scale, sum);
}

// int4: a scale for every 32 columns of a token, which is half a chunk.
template <class T>
Scales scales_of_half(const Part& part, const Chunk<T>& chunk, int half) {
    __m512i rows[kTileTokens] = {};
    for (int64_t m = 0; m < part.size(); ++m) {
        chunk.prefetch(m, half);
        rows[m] = chunk.magnitudes(m, half);
    }
    return Scales(largest_of_rows(rows));
}

template <class T>
void round_part4(const QuantizedLinearArgs& args, const Part& part) {
    const int64_t halves = args.shape.x_groups();
    for (int64_t i = 0; 2 * i < halves; ++i) {
        const Chunk<T> chunk(args, part, i);
        const Scales first = scales_of_half(part, chunk, 0), second = scales_of_half(part, chunk, 1);
        const HalfSums sums =
            store_chunk(args.shape, part, i, chunk, first.inverse, second.inverse);
        store_scales(args.shape, part, 2 * i, first.scale, sums.half[0]);
        if (2 * i + 1 == halves) continue;
        store_scales(args.shape, part, 2 * i + 1, second.scale, sums.half[1]);
    }
}

// A tile of one token, whose codes lie one after the other. Returns each unit's sum.
template <class T>
__m512i store_chunk_alone(const QuantizedShape& shape, const Part& part, int64_t index,
                          const Chunk<T>& chunk, float inverse0, float inverse1) {
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // its own inverse
    const __m512i codes =
        _mm512_permutexvar_epi32(order, chunk.codes(0, inverse0, inverse1));
    _mm512_mask_storeu_epi32(part.tile.codes + index * kChunkUnits,
                             tail_mask(shape.units() - index * kChunkUnits), codes);
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes);
}

template <class T>
void round_alone8(const QuantizedLinearArgs& args, const Part& part) {
    const int64_t chunks = ceil_div(args.shape.units(), kChunkUnits);
    __m512i largest = _mm512_setzero_si512(), sums = _mm512_setzero_si512();
    for (int64_t i = 0; i < chunks; ++i) {
        const Chunk<T> chunk(args, part, i);
        largest = _mm512_max_epu32(largest, chunk.magnitudes(0, 0));
        largest = _mm512_max_epu32(largest, chunk.magnitudes(0, 1));
    }
    const Scale8 scale = scale8(_mm512_reduce_max_epu32(largest));
    for (int64_t i = 0; i < chunks; ++i) {
        const Chunk<T> chunk(args, part, i);
        sums = _mm512_add_epi32(sums, store_chunk_alone(args.shape, part, i, chunk, scale.inverse,
                                                        scale.inverse));
    }
    part.tile.scales[0] = scale.scale;
    part.tile.offsets[0] = -int(args.shape.offset()) * _mm512_reduce_add_epi32(sums);
}

template <class T>
void round_alone4(const QuantizedLinearArgs& args, const Part& part) {
    const int64_t halves = args.shape.x_groups();
    for (int64_t i = 0; 2 * i < halves; ++i) {
        const Chunk<T> chunk(args, part, i);
        const Scale8 first = scale8(_mm512_reduce_max_epu32(chunk.magnitudes(0, 0)));
        const Scale8 second = scale8(_mm512_reduce_max_epu32(chunk.magnitudes(0, 1)));
        const __m512i sums = store_chunk_alone(args.shape, part, i, chunk, first.inverse,
                                               second.inverse);
        const int offset = -int(args.shape.offset());
        part.tile.scales[2 * i] = first.scale;
        part.tile.offsets[2 * i] = offset * _mm512_mask_reduce_add_epi32(0x00ff, sums);
        if (2 * i + 1 == halves) continue;
        part.tile.scales[2 * i + 1] = second.scale;
        part.tile.offsets[2 * i + 1] = offset * _mm512_mask_reduce_add_epi32(0xff00, sums);
    }
}

template <class T>
void round_part(const QuantizedLinearArgs& args, const Part& part) {
    const bool is_alone = part.tile.size() == 1;
    if (args.shape.is_int4()) {
        is_alone ? round_alone4<T>(args, part) : round_part4<T>(args, part);
    } else {
        is_alone ? round_alone8<T>(args, part) : round_part8<T>(args, part);
    }
}

// x of one product, normed where that is asked for, and rounded.
class RoundedX {
  public:
    RoundedX(const QuantizedLinearArgs& args, Arena& arena)
        : args_(args),
          tiling_{args},
          parts_(parts_of(args.num_threads, tiling_.count)),
          on_demand_(arena, tiling_.count * parts_) {}

    const Tiling& tiling() const { return tiling_; }
    // A tile that is ready to be multiplied.
    Tile tile(int64_t index) const {
        on_demand_.need({index * parts_, (index + 1) * parts_}, [&](int64_t unit) { make(unit); });
        return tiling_.tile(index);
    }

  private:
    // Where there are fewer tiles than threads, the threads that would wait take a part of one.
    static int64_t parts_of(int64_t num_threads, int64_t tiles) {
        const int64_t parts = num_threads / tiles;
        return parts < 1 ? 1 : parts < 4 ? parts : 4;
    }
    void make(int64_t unit) const {
        const Tile tile = tiling_.tile(unit / parts_);
        const Part part{tile, share(tile.size(), unit % parts_, parts_)};
        if (part.size() == 0) return;
        if (args_.norm != nullptr) norm_rows(*args_.norm, part.tokens());
        if (args_.x_dtype == DType::kBfloat16) return round_part<Bf16>(args_, part);
        round_part<float>(args_, part);
    }

    const QuantizedLinearArgs& args_;
    Tiling tiling_;
    int64_t parts_;
    OnDemand on_demand_;
};

}  // namespace
}  // namespace hal::cpu
