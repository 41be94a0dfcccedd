// Both products of attention for the few rows of a decode, straight from the cache: with fewer
// rows than a micro-kernel tile, writing K and V to scratch first would cost as much as using them.
// Every output is the chain of additions that tile_avx512.h makes, so the bits are the same.
#pragma once

#include "attention_keys_avx512.h"
#include "tile_avx512.h"

namespace hal::cpu {
namespace {

constexpr int64_t kDirectRows = 8;

// One tile's products for `rows` rows, as far as `width` keys (a multiple of 16).
template <class T>
struct DirectOperands {
    const KeyTile<T>& tile;
    const KeyTile<T>& next;
    int64_t dim;
    int64_t width;
    const T* q;     // [rows][dim]
    const T* p;     // [rows][64]
    float* scores;  // [rows][64]
    float* values;  // [rows][values_stride]
    int64_t values_stride;
};

template <class T>
inline __m512i broadcast_step(const T* a) {
    return _mm512_set1_epi32(*reinterpret_cast<const int*>(a));
}

template <class T, int R>
[[gnu::noinline]] void direct_scores(const DirectOperands<T>& op) {
    constexpr int64_t step = 4 / sizeof(T);
    const int64_t units = op.dim / step;
    Fetcher<T> fetcher(op.next.keys, op.dim);
    for (int64_t first = 0; first < op.width; first += kLanes) {
        __m512 acc[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
        for (int64_t u = 0; u < units; u += kLanes) {
            const int64_t count = units - u < kLanes ? units - u : kLanes;
            __m512i k[16];
            load_steps(op.tile.keys + first, u * step, tail_mask(count), k);
            const T* q = op.q + u * step;
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                if (i == count) break;
                fetcher.fetch_line();
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    acc[r] = dot(acc[r], broadcast_step(q + r * op.dim + i * step), k[i], q);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) _mm512_storeu_ps(op.scores + r * kTileKeys + first, acc[r]);
    }
}

// 16 * NV columns from c.
template <class T, int R, int NV>
inline void direct_columns(const DirectOperands<T>& op, int64_t c, Fetcher<T>& fetcher) {
    constexpr int64_t step = 4 / sizeof(T);
    __m512 acc[R][NV];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
            acc[r][v] = _mm512_loadu_ps(op.values + r * op.values_stride + c + v * kLanes);
        }
    }
    for (int64_t key = 0; key < op.width; key += step) {
        __m512i b[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) fetcher.fetch_line();
        load_values<NV>(op.tile.values + key, c, op.dim - c, b);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512i a = broadcast_step(op.p + r * kTileKeys + key);
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) acc[r][v] = dot(acc[r][v], a, b[v], op.p);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
            _mm512_storeu_ps(op.values + r * op.values_stride + c + v * kLanes, acc[r][v]);
        }
    }
}

template <class T, int R>
[[gnu::noinline]] void direct_values(const DirectOperands<T>& op) {
    Fetcher<T> fetcher(op.next.values, op.dim);
    int64_t c = 0;
    for (; op.dim - c > kLanes; c += 2 * kLanes) direct_columns<T, R, 2>(op, c, fetcher);
    if (c < op.dim) direct_columns<T, R, 1>(op, c, fetcher);
}

// Calls visit<R>() for R = rows, known at run time and at most MR.
template <int MR, class Visit>
void with_rows(int64_t rows, const Visit& visit) {
    if constexpr (MR > 1) {
        if (rows < MR) return with_rows<MR - 1>(rows, visit);
    }
    visit.template operator()<MR>();
}

// scores = q . K
template <class T>
void direct_scores(const DirectOperands<T>& op, int64_t rows) {
    with_rows<kDirectRows>(rows, [&]<int R>() { direct_scores<T, R>(op); });
}

// values += p . V
template <class T>
void direct_values(const DirectOperands<T>& op, int64_t rows) {
    with_rows<kDirectRows>(rows, [&]<int R>() { direct_values<T, R>(op); });
}

}  // namespace
}  // namespace hal::cpu
