// Dense layer on a packed weight, in floats: bfloat16 is widened in registers, where each widened
// register serves all tokens of a tile.
#pragma once

#include "portable_epilogue.h"
#include "portable_tile.h"

namespace hal::cpu {
namespace {

// Tokens and depth of one cache block. 64 units of a panel are 16 KiB: where registers hold the sums
// of a part of its columns only, the block stays in L1 for the passes over the others, which fetch
// the next block meanwhile.
constexpr int64_t kBlockTokens = 48;
constexpr int64_t kBlockUnits = 64;
constexpr int64_t kBlockDepth = 2 * kBlockUnits;

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
                       .a_step = step,
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
