// The one matrix micro-kernel: c[MR, 16 NV] (+)= a[MR, k] . b, where b is packed as
// [k / step][16 NV][step]. linear uses it on weights, attention on packed K and V.
//
// One step of k is 32 bits in both dtypes: a pair of bfloat16 for vdpbf16ps or one float32 for FMA,
// so both share the code. Each output is a single chain of additions along k, in order, whatever
// the tile shape: that is what makes the callers batch-invariant.
#pragma once

#include "simd_avx512.h"

namespace hal::cpu {
namespace {

// 6 x 4 accumulators, 4 registers of b and one of a: 29 of 32.
constexpr int64_t kTileRows = 6;

// How far ahead of b to prefetch while its bytes come from memory for the first time; beyond the
// reach of the hardware's prefetchers, which stop at the page. Later row tiles find b in cache and
// fetch what follows the block instead.
constexpr int64_t kPrefetchBytes = 2048;

template <class T>
struct TileOperands {
    const T* a;
    int64_t a_stride;
    const T* b;
    int64_t k;
    float* c;
    int64_t c_stride;
    bool accumulate;  // start from c instead of zero
    int64_t ahead = kPrefetchBytes;  // bytes from b to what should be prefetched
};

inline __m512 dot(__m512 acc, __m512i a, __m512i b, const Bf16*) {
    return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
}
inline __m512 dot(__m512 acc, __m512i a, __m512i b, const float*) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc);
}

template <class T, int MR, int NV>
inline void tile_step(__m512 (&acc)[MR][NV], const T* a, int64_t a_stride, const T* b,
                      int64_t ahead) {
    constexpr int64_t vector = 64 / sizeof(T);
    __m512i bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
        bv[v] = _mm512_loadu_si512(b + v * vector);
        _mm_prefetch(reinterpret_cast<const char*>(b + v * vector) + ahead, _MM_HINT_T0);
    }
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
        int step;  // rows of an odd number of bfloat16 apart are not aligned for an int
        __builtin_memcpy(&step, a + m * a_stride, sizeof step);
        const __m512i av = _mm512_set1_epi32(step);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = dot(acc[m][v], av, bv[v], b);
    }
}

// The last, odd element of k when a step is a pair: its partner must not be read from `a`.
template <int MR, int NV>
inline void tile_odd(__m512 (&acc)[MR][NV], const Bf16* a, int64_t a_stride, const Bf16* b) {
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
        const __m512i av = _mm512_set1_epi32(a[m * a_stride].bits);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            acc[m][v] = dot(acc[m][v], av, _mm512_loadu_si512(b + v * 32), b);
        }
    }
}
template <int MR, int NV>
inline void tile_odd(__m512 (&)[MR][NV], const float*, int64_t, const float*) {}

template <class T, int MR, int NV>
[[gnu::noinline]] void tile(const TileOperands<T>& op) {
    constexpr int64_t step = 4 / sizeof(T);
    constexpr int64_t b_stride = NV * kLanes * step;
    const int64_t a_stride = op.a_stride;
    __m512 acc[MR][NV];
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            acc[m][v] = op.accumulate ? _mm512_loadu_ps(op.c + m * op.c_stride + v * kLanes)
                                      : _mm512_setzero_ps();
        }
    }
    const T* a = op.a;
    const T* b = op.b;
    const T* end = a + op.k / step * step;
    for (; a < end; a += step, b += b_stride) tile_step<T, MR, NV>(acc, a, a_stride, b, op.ahead);
    if (op.k % step != 0) tile_odd(acc, a, a_stride, b);
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            _mm512_storeu_ps(op.c + m * op.c_stride + v * kLanes, acc[m][v]);
        }
    }
}

// tile<T, rows, NV> for a rows known at run time, at most MR.
template <class T, int NV, int MR>
void tile_rows(const TileOperands<T>& op, int64_t rows) {
    if constexpr (MR == 1) {
        tile<T, 1, NV>(op);
    } else if (rows == MR) {
        tile<T, MR, NV>(op);
    } else {
        tile_rows<T, NV, MR - 1>(op, rows);
    }
}

// c[rows, 16 * vectors] for any rows and up to 4 vectors: near-equal tiles of at most kTileRows.
template <class T>
void tile_block(const TileOperands<T>& op, int64_t rows, int64_t vectors) {
    const int64_t tiles = ceil_div(rows, kTileRows);
    for (int64_t i = 0; i < tiles; ++i) {
        const Range range = share(rows, i, tiles);
        const int64_t count = range.end - range.begin;
        TileOperands<T> part = op;
        part.a += range.begin * op.a_stride;
        part.c += range.begin * op.c_stride;
        if (i > 0) part.ahead = op.k * vectors * kLanes * int64_t(sizeof(T));
        if (vectors == 4) tile_rows<T, 4, kTileRows>(part, count);
        if (vectors == 3) tile_rows<T, 3, kTileRows>(part, count);
        if (vectors == 2) tile_rows<T, 2, kTileRows>(part, count);
        if (vectors == 1) tile_rows<T, 1, kTileRows>(part, count);
    }
}

}  // namespace
}  // namespace hal::cpu
