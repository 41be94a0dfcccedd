// The micro-kernel on floats: c[MR, 16 groups] (+)= a[MR, k] . b, where b is [units of k][columns],
// a unit being a float32 or a pair of bfloat16. Every output is one chain of multiply-adds along k,
// in order, whatever the tile: that is what makes its callers batch-invariant.
#pragma once

#include "portable_lanes.h"

namespace hal::cpu {
namespace {

constexpr int kTileRows = 6;

// As in tile_avx512.h: beyond the reach of the hardware's prefetchers, which stop at the page.
constexpr int64_t kPrefetchBytes = 2048;

template <class T>
struct TileOperands {
    const float* a;
    int64_t a_stride;
    int64_t a_step;  // elements between units of k
    const T* b;
    int64_t b_stride;  // likewise
    int64_t units;
    float* c;
    bool accumulate;  // start from c instead of zero
    const char* ahead = nullptr;  // what to prefetch, as many bytes as are read of b
};

template <int MR, int NV>
inline void add_products(Floats (&acc)[MR][NV], const float* a, int64_t a_stride,
                         const Floats (&b)[NV]) {
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
        const Floats value = splat(a[m * a_stride]);
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(value, b[v], acc[m][v]);
    }
}

template <int MR, int NV>
inline void add_unit(Floats (&acc)[MR][NV], const float* a, int64_t a_stride, const float* b) {
    Floats values[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) values[v] = load(b + v * kWidth);
    add_products(acc, a, a_stride, values);
}
template <int MR, int NV>
inline void add_unit(Floats (&acc)[MR][NV], const float* a, int64_t a_stride, const Bf16* b) {
    Floats values[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) values[v] = first_of_pair(load_bytes(b + 2 * v * kWidth));
    add_products(acc, a, a_stride, values);
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) values[v] = second_of_pair(load_bytes(b + 2 * v * kWidth));
    add_products(acc, a + 1, a_stride, values);
}

// c[MR, NV registers] (+)= a . b, rows of c as far apart as a panel is wide.
template <class T, int MR, int NV>
[[gnu::noinline]] void tile(const TileOperands<T>& op) {
    Floats acc[MR][NV];
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) {
            acc[m][v] = op.accumulate ? load(op.c + m * kPanelRows + v * kWidth) : zeros();
        }
    }
    const float* a = op.a;
    const T* b = op.b;
    const char* ahead = op.ahead;
    for (int64_t u = 0; u < op.units; ++u, a += op.a_step, b += op.b_stride) {
#pragma GCC unroll 4
        for (int line = 0; line < NV * kWidth * 4; line += 64) __builtin_prefetch(ahead + line);
        ahead += NV * kWidth * 4;
        add_unit<MR, NV>(acc, a, op.a_stride, b);
    }
#pragma GCC unroll 6
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 16
        for (int v = 0; v < NV; ++v) store(op.c + m * kPanelRows + v * kWidth, acc[m][v]);
    }
}

// Groups of 16 rows whose sums for `rows` tokens fit the registers: 4, 2 or 1. One token needs no
// register of the weight twice.
constexpr int groups_that_fit(int rows) {
    for (int groups = 4; groups > 1; groups /= 2) {
        const int vectors = groups * kParts;
        if (rows == 1 || rows * vectors + vectors + 1 <= kRegisters) return groups;
    }
    return 1;
}

// All columns of a panel of `width` rows.
template <class T, int MR>
void tile_panel(TileOperands<T> op, int64_t width) {
    constexpr int64_t step = 4 / sizeof(T);
    constexpr int64_t wide = groups_that_fit(MR) * kLanes;
    int64_t first = 0;
    op.ahead = reinterpret_cast<const char*>(op.b) +
               (wide == width ? kPrefetchBytes : op.units * width * 4);
    for (; first + wide <= width; first += wide, op.b += wide * step, op.c += wide) {
        tile<T, MR, wide / kWidth>(op);
        op.ahead += op.units * wide * 4;
    }
    for (; first < width; first += kLanes, op.b += kLanes * step, op.c += kLanes) {
        tile<T, MR, kParts>(op);
        op.ahead += op.units * kLanes * 4;
    }
}

// tile_panel<T, rows> for a number known at run time, at most MR.
template <class T, int MR>
void tile_rows(const TileOperands<T>& op, int64_t rows, int64_t width) {
    if constexpr (MR > 1) {
        if (rows < MR) return tile_rows<T, MR - 1>(op, rows, width);
    }
    tile_panel<T, MR>(op, width);
}

// Any number of rows, in near-equal tiles.
template <class T>
void tile_block(const TileOperands<T>& op, int64_t rows, int64_t width) {
    const int64_t tiles = ceil_div(rows, kTileRows);
    for (int64_t i = 0; i < tiles; ++i) {
        const Range range = share(rows, i, tiles);
        TileOperands<T> part = op;
        part.a += range.begin * op.a_stride;
        part.c += range.begin * kPanelRows;
        tile_rows<T, kTileRows>(part, range.end - range.begin, width);
    }
}

}  // namespace
}  // namespace hal::cpu
