// Dense layer on a packed weight, in floats: bfloat16 is widened in registers, where each widened
// register serves all tokens of a tile. Every output is one chain of multiply-adds along k, in
// order, whatever the tile: that is what makes it batch-invariant.
#pragma once

#include "portable_epilogue.h"

namespace hal::cpu {
namespace {

// Tokens and depth of one cache block. 64 units of a panel are 16 KiB: where registers hold the sums
// of a part of its columns only, the block stays in L1 for the passes over the others, which fetch
// the next block meanwhile.
constexpr int64_t kBlockTokens = 48;
constexpr int64_t kBlockUnits = 64;
constexpr int64_t kBlockDepth = 2 * kBlockUnits;
constexpr int kTileRows = 6;

// As in tile_avx512.h: beyond the reach of the hardware's prefetchers, which stop at the page.
constexpr int64_t kPrefetchBytes = 2048;

template <class T>
struct TileOperands {
    const float* a;
    int64_t a_stride;
    const T* b;
    int64_t b_stride;  // elements between units of k
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
    constexpr int64_t step = 4 / sizeof(T);
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
    for (int64_t u = 0; u < op.units; ++u, a += step, b += op.b_stride) {
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

// x as floats, zeros behind the last column: a copy unless it is that already.
struct FloatBlock {
    const float* values;
    int64_t stride;
};
inline FloatBlock widened(const float* x, int64_t stride, int64_t, int64_t, float*) {
    return {x, stride};
}
inline FloatBlock widened(const Bf16* x, int64_t stride, int64_t rows, int64_t columns,
                          float* to) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t k = 0; k < columns; k += kWidth) {
            store(to + row * kBlockDepth + k, load(x + row * stride + k, columns - k));
        }
    }
    return {to, kBlockDepth};
}

template <class T>
void run_block(const LinearArgs& args, int64_t panel, const Range& tokens) {
    alignas(64) float sums[kBlockTokens * kPanelRows];
    alignas(64) float memory[kBlockTokens * kBlockDepth];
    constexpr int64_t step = 4 / sizeof(T);
    const PackedShape& shape = args.shape;
    const int64_t width = shape.panel_width(panel), rows = tokens.end - tokens.begin;
    const T* x = static_cast<const T*>(args.x) + tokens.begin * args.x_stride;
    const T* weight = static_cast<const T*>(args.weight) + shape.panel_offset(panel);
    for (int64_t k = 0; k < shape.k; k += kBlockUnits * step) {
        const int64_t left = shape.k - k, most = kBlockUnits * step;
        const int64_t depth = left < most ? left : most;
        const FloatBlock block = widened(x + k, args.x_stride, rows, depth, memory);
        tile_block<T>({.a = block.values,
                       .a_stride = block.stride,
                       .b = weight + k * width,
                       .b_stride = width * step,
                       .units = ceil_div(depth, step),
                       .c = sums,
                       .accumulate = k > 0},
                      rows, width);
    }
    for (int64_t row = 0; row < rows; ++row) {
        finish_row(args.output, tokens.begin + row, panel * kPanelRows, width,
                   sums + row * kPanelRows);
    }
}

template <class T>
void run(const LinearArgs& args) {
    // Consecutive blocks share a panel, which therefore stays in this core's L2.
    const int64_t blocks = ceil_div(args.m, kBlockTokens);
    for_each(args.num_threads, args.shape.num_panels() * blocks, true, [&](int64_t i) {
        run_block<T>(args, i / blocks, share(args.m, i % blocks, blocks));
    });
}

void run_linear(const LinearArgs& args) {
    if (args.m == 0) return;
    if (args.shape.dtype == DType::kBfloat16) {
        run<Bf16>(args);
    } else {
        run<float>(args);
    }
}

}  // namespace
}  // namespace hal::cpu
