// Both products of attention, straight from the strips of the cache: q . K for 64 keys, and their
// weights times V. Rows are the heads that share a KV head, of one token or of many.
//
// A dword holds one step of the sum: a float32, a pair of bfloat16 (vdpbf16ps) or 4 codes
// (vpdpbusd). Each output of floats is a single chain of additions, in order, whatever the tile
// shape, and sums of codes are exact: that is what makes attention batch-invariant.
#pragma once

#include "attention_strips_avx512.h"

namespace hal::cpu {
namespace {

// A code of K or V. What multiplies it is rounded to 16 bits and comes as two rows of bytes, 256 *
// the first + the second, so that the rounding of queries and weights does not show.
struct Code {
    uint8_t bits;
};

// Rows of bytes or floats that stand for one row.
template <class T>
inline constexpr int64_t kParts = 1;
template <>
inline constexpr int64_t kParts<Code> = 2;

// 8 x 2 accumulators, so that a product is never waited for.
template <class T>
inline constexpr int kTileRows = 8 / int(kParts<T>);

inline __m512i dot_keys(__m512i sum, __m512i q, __m512i k, const float*) {
    return (__m512i)_mm512_fmadd_ps((__m512)q, (__m512)k, (__m512)sum);
}
inline __m512i dot_keys(__m512i sum, __m512i q, __m512i k, const Bf16*) {
    return (__m512i)_mm512_dpbf16_ps((__m512)sum, (__m512bh)q, (__m512bh)k);
}
inline __m512i dot_keys(__m512i sum, __m512i q, __m512i k, const Code*) {
    return _mm512_dpbusd_epi32(sum, k, q);  // unsigned, signed
}
template <class T>
inline __m512i dot_values(__m512i sum, __m512i p, __m512i v, const T* type) {
    return dot_keys(sum, p, v, type);
}
inline __m512i dot_values(__m512i sum, __m512i p, __m512i v, const Code*) {
    return _mm512_dpbusd_epi32(sum, p, v);
}

inline __m512i broadcast_dword(const char* p) {
    int dword;
    __builtin_memcpy(&dword, p, sizeof dword);
    return _mm512_set1_epi32(dword);
}

// `next` is the tile whose strips are fetched meanwhile, line for line: blocks are too short and too
// scattered for the hardware to guess them. Into the second level of cache, because the first has
// too few misses under way to reach the memory's bandwidth.
struct ScoreOperands {
    const KeyTile& tile;
    const KeyTile& next;
    int64_t strips;  // of the tile, that have keys
    int64_t units;   // dwords of a row of q
    const char* q;   // [rows * parts][units] dwords
    const int* start;  // [rows * parts]: what sums start from
    char* scores;      // [rows * parts][64] dwords
};

template <class T, int MR, int NV>
inline void score_strips(const ScoreOperands& op, int64_t first) {
    __m512i sums[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) sums[m][v] = _mm512_set1_epi32(op.start[m]);
    }
    const char* q = op.q;
    for (int64_t u = 0; u < op.units; ++u, q += 4) {
        __m512i k[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
            k[v] = _mm512_loadu_si512(op.tile.keys[first + v] + 64 * u);
            _mm_prefetch(op.next.keys[first + v] + 64 * u, _MM_HINT_T1);
        }
#pragma GCC unroll 8
        for (int m = 0; m < MR; ++m) {
            const __m512i a = broadcast_dword(q + 4 * m * op.units);
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) {
                sums[m][v] = dot_keys(sums[m][v], a, k[v], static_cast<const T*>(nullptr));
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
            char* to = op.scores + 4 * (m * kTileKeys + (first + v) * kLanes);
            _mm512_storeu_si512(to, sums[m][v]);
        }
    }
}

template <class T, int MR>
[[gnu::noinline]] void score_tile(const ScoreOperands& op) {
    int64_t first = 0;
    for (; first + 1 < op.strips; first += 2) score_strips<T, MR, 2>(op, first);
    if (first < op.strips) score_strips<T, MR, 1>(op, first);
}

struct ValueOperands {
    const KeyTile& tile;
    const KeyTile& next;
    int64_t strips;
    int64_t dim;
    const char* p;        // [rows * parts][64] elements
    const float* scales;  // [rows] of weights that are codes
    float* values;        // [rows]
    int64_t stride;       // of values
};

// Sums of codes, 256 * hi + lo, under their scale.
inline void add_codes(float* to, float scale, __m512i hi, __m512i lo) {
    const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(hi, 8), lo);
    _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale), load(to)));
}

// values += p . V for 16 * NV columns from c.
template <class T, int MR, int NV>
inline void value_columns(const ValueOperands& op, int64_t c) {
    constexpr int64_t step = 4 / sizeof(T), parts = kParts<T>;
    __m512i sums[MR][NV];
    __mmask16 mask[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) mask[v] = tail_mask(op.dim - c - v * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
            sums[m][v] = _mm512_setzero_si512();
            if constexpr (parts == 1) {
                sums[m][v] = _mm512_loadu_si512(op.values + m * op.stride + c + v * kLanes);
            }
        }
    }
    const char* p = op.p;
    for (int64_t strip = 0; strip < op.strips; ++strip) {
        const char* row = op.tile.values[strip] + 4 * c;
        const char* next = op.next.values[strip] + 4 * c;
        for (int64_t key = 0; key < kLanes; key += step, p += 4) {
            __m512i b[NV];
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) {
                b[v] = _mm512_maskz_loadu_epi32(mask[v], row + 64 * v);
                _mm_prefetch(next + 64 * v, _MM_HINT_T1);
            }
            row += 4 * op.dim;
            next += 4 * op.dim;
#pragma GCC unroll 8
            for (int m = 0; m < MR; ++m) {
                const __m512i a = broadcast_dword(p + m * kTileKeys * int64_t(sizeof(T)));
#pragma GCC unroll 2
                for (int v = 0; v < NV; ++v) {
                    sums[m][v] = dot_values(sums[m][v], a, b[v], static_cast<const T*>(nullptr));
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; m += int(parts)) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
            float* to = op.values + m / parts * op.stride + c + v * kLanes;
            if constexpr (parts == 1) {
                _mm512_storeu_si512(to, sums[m][v]);
            } else {
                add_codes(to, op.scales[m / parts], sums[m][v], sums[m + 1][v]);
            }
        }
    }
}

template <class T, int MR>
[[gnu::noinline]] void value_tile(const ValueOperands& op) {
    int64_t c = 0;
    for (; op.dim - c > kLanes; c += 2 * kLanes) value_columns<T, MR, 2>(op, c);
    if (c < op.dim) value_columns<T, MR, 1>(op, c);
}

// Calls visit<R>() for R = rows, known at run time and at most MR.
template <int MR, class Visit>
void with_rows(int64_t rows, const Visit& visit) {
    if constexpr (MR > 1) {
        if (rows < MR) return with_rows<MR - 1>(rows, visit);
    }
    visit.template operator()<MR>();
}

// Calls visit<R>(first) for near-equal tiles of at most kTileRows<T> of `rows`.
template <class T, class Visit>
void visit_row_tiles_of(Range rows, const Visit& visit) {
    const int64_t count = rows.end - rows.begin;
    const int64_t tiles = ceil_div(count, kTileRows<T>);
    for (int64_t i = 0; i < tiles; ++i) {
        const Range tile = share(count, i, tiles);
        with_rows<kTileRows<T>>(tile.end - tile.begin,
                                [&]<int R>() { visit.template operator()<R>(rows.begin + tile.begin); });
    }
}

// scores = q . K for rows of the item. Only the first rows fetch what comes next.
template <class T>
void multiply_keys(const ScoreOperands& op, Range rows) {
    constexpr int parts = int(kParts<T>);
    visit_row_tiles_of<T>(rows, [&]<int R>(int64_t first) {
        const int64_t at = first * parts;
        score_tile<T, R * parts>({.tile = op.tile,
                                  .next = first == rows.begin ? op.next : op.tile,
                                  .strips = op.strips,
                                  .units = op.units,
                                  .q = op.q + 4 * at * op.units,
                                  .start = op.start + at,
                                  .scores = op.scores + 4 * at * kTileKeys});
    });
}

// values += p . V
template <class T>
void multiply_values(const ValueOperands& op, Range rows) {
    constexpr int parts = int(kParts<T>);
    visit_row_tiles_of<T>(rows, [&]<int R>(int64_t first) {
        value_tile<T, R * parts>(
            {.tile = op.tile,
             .next = first == rows.begin ? op.next : op.tile,
             .strips = op.strips,
             .dim = op.dim,
             .p = op.p + first * parts * kTileKeys * int64_t(sizeof(T)),
             .scales = op.scales + first,
             .values = op.values + first * op.stride,
             .stride = op.stride});
    });
}

}  // namespace
}  // namespace hal::cpu
