// Dense layer by dots of codes, x rounded to codes on the way. Tokens run in tiles of up to kTileTokens
// whose sums stay in registers over the whole depth, so a strip of 16 weight rows is unpacked once
// for a tile: one token reads the weight as one linear stream, more tiles pass over a panel of
// 4 strips that stays in cache.
#pragma once

#include "portable_epilogue.h"
#include "portable_quantize.h"
#include "rounded_x.h"

namespace hal::cpu {
namespace {

// How much of rounded x may stay in cache beside the panel of the weight.
constexpr int64_t kBlockBytes = 128 << 10;

// Beyond the reach of the hardware's prefetchers, which stop at the page.
constexpr int64_t kStripPrefetchBytes = 4096;

using Tiling = TilesOf<kTileTokens>;

// Codes of kWidth columns of one token, as far as `units` of 4 columns go.
inline void store_codes(int32_t* to, int64_t stride, int64_t units, Ints codes) {
    alignas(16) int32_t fours[kWidth / 4];
    store_low_bytes(fours, codes);
    for (int64_t i = 0; i < kWidth / 4 && i < units; ++i) to[i * stride] = fours[i];
}

inline void round_token8(const FloatRow& row, const QuantizedShape& shape, const Tile& tile,
                         int64_t m) {
    const Scale8 scale = scale8(largest_of(row.largest_bits(0, row.columns)));
    Ints sums = splat(0);
    for (int64_t u = 0; u < shape.units(); u += kWidth / 4) {
        const Ints rounded = rounded_codes(row.load_at(4 * u), scale.inverse);
        sums = add(sums, rounded);
        store_codes(tile.codes + u * tile.size() + m, tile.size(), shape.units() - u, rounded);
    }
    tile.scales[m] = scale.scale;
    tile.offsets[m] = -int32_t(shape.offset()) * sum_of(sums);
}

inline void round_token4(const FloatRow& row, const QuantizedShape& shape, const Tile& tile,
                         int64_t m) {
    const int64_t size = tile.size();
    for (int64_t group = 0; group < shape.x_groups(); ++group) {
        const int64_t first = 32 * group;
        const Scale8 scale = scale8(largest_of(row.largest_bits(first, first + 32)));
        int32_t* codes = tile.codes + 8 * group * size + m;
        Ints sums = splat(0);
        for (int64_t k = 0; k < 32; k += kWidth, codes += kWidth / 4 * size) {
            const Ints rounded = rounded_codes(row.load_at(first + k), scale.inverse);
            sums = add(sums, rounded);
            store_codes(codes, size, kWidth / 4, rounded);
        }
        tile.scales[group * size + m] = scale.scale;
        tile.offsets[group * size + m] = -int32_t(shape.offset()) * sum_of(sums);
    }
}

inline void round_tokens(const QuantizedLinearArgs& args, const Range& tokens) {
    const Tiling tiling{args};
    const int64_t element = args.x_dtype == DType::kFloat32 ? 4 : 2;
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
        const Tile tile = tiling.tile(tiling.index_of(token));
        const FloatRow row{static_cast<const char*>(args.x) + token * args.x_stride * element,
                           args.x_dtype, args.shape.k};
        const auto round = args.shape.is_int4() ? round_token4 : round_token8;
        round(row, args.shape, tile, token - tile.tokens.begin);
    }
}

inline void prefetch(const uint8_t* weight) { __builtin_prefetch(weight + kStripPrefetchBytes); }

// sums[m * 64 + row] of 16 weight rows.
template <int M>
[[gnu::noinline]] void product8(const QuantizedShape& shape, const uint8_t* strip,
                                const Tile& tile, float* sums) {
    const uint8_t* weight = strip + shape.codes_at(0);
    const int32_t* x = tile.codes;
    RowSums dot[M][kParts];
    for (int64_t u = 0; u < shape.units(); ++u, weight += 64, x += M) {
        prefetch(weight);
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
            const SignedCodes codes(load_bytes(weight + 4 * kWidth * p));
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) dot[m][p].add_products(codes, broadcast(x + m));
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Ints offset = broadcast(tile.offsets + m);
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) {
            const Floats scale = load(reinterpret_cast<const float*>(strip) + p * kWidth);
            const Floats both = scale * splat(tile.scales[m]);
            store(sums + m * kPanelRows + p * kWidth, to_floats(dot[m][p].total(offset)) * both);
        }
    }
}

// Adds 8 columns of a strip: 4 in the low halves of its codes, 4 in the high ones.
template <int M>
inline void add_columns(GroupSums (&dot)[M][kParts], const uint8_t* weight, const int32_t* x) {
    Ints pairs[kParts];
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) pairs[p] = load_bytes(weight + 4 * kWidth * p);
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
        const Ints codes = low_nibbles(pairs[p]);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) dot[m][p].add_products(codes, broadcast(x + m));
    }
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) {
        const Ints codes = high_nibbles(pairs[p]);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) dot[m][p].add_products(codes, broadcast(x + M + m));
    }
}

// Minus what the offset of 16 rows' codes adds to a dot: that of all, or of each row's own.
template <bool kZeros>
inline Ints offset_of(const int32_t* offset, const uint8_t* zeros, int part) {
    if constexpr (!kZeros) return broadcast(offset);
    return mul(broadcast(offset), load_widened(zeros + part * kWidth));
}

template <int M, bool kZeros>
[[gnu::noinline]] void product4(const QuantizedShape& shape, const uint8_t* strip,
                                const Tile& tile, float* sums) {
    const uint8_t* weight = strip;
    const uint8_t* header = strip;
    const int log_parts = __builtin_ctzll(uint64_t(shape.group / 32));  // of 32 columns in a group
    const int64_t parts = shape.header_groups() << log_parts;
    const int32_t* x = tile.codes;
    Floats acc[M][kParts];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) acc[m][p] = zeros();
    }
    for (int64_t i = 0, part = 0; i < shape.x_groups(); ++i) {
        if (part == 0) {
            header = weight;
            weight += shape.header_bytes();
            prefetch(weight);
        }
        const int64_t group = part >> log_parts;
        const Bf16* scale = reinterpret_cast<const Bf16*>(header) + group * kLanes;
        const uint8_t* zero = header + (2 * shape.header_groups() + group) * kLanes;
        part = part + 1 == parts ? 0 : part + 1;
        GroupSums dot[M][kParts];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j, weight += 64, x += 2 * M) {
            prefetch(weight);
            add_columns<M>(dot, weight, x);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Floats x_scale = splat(tile.scales[i * M + m]);
            const int32_t* x_offset = tile.offsets + i * M + m;
#pragma GCC unroll 4
            for (int p = 0; p < kParts; ++p) {
                const Ints offset = offset_of<kZeros>(x_offset, zero, p);
                const Floats both = load(scale + p * kWidth) * x_scale;
                acc[m][p] = fma(to_floats(add(dot[m][p].total(), offset)), both, acc[m][p]);
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) store(sums + m * kPanelRows + p * kWidth, acc[m][p]);
    }
}

// product*<tokens> for a number known at run time, at most M.
template <int M>
void product(const QuantizedShape& shape, const uint8_t* strip, const Tile& tile, float* sums) {
    if constexpr (M > 1) {
        if (tile.size() < M) return product<M - 1>(shape, strip, tile, sums);
    }
    if (shape.has_zeros) {
        product4<M, true>(shape, strip, tile, sums);
    } else if (shape.is_int4()) {
        product4<M, false>(shape, strip, tile, sums);
    } else {
        product8<M>(shape, strip, tile, sums);
    }
}

inline void run_tile(const QuantizedLinearArgs& args, int64_t panel, const Tile& tile) {
    alignas(64) float sums[kTileTokens * kPanelRows];
    const QuantizedShape& shape = args.shape;
    const int64_t first = panel * (kPanelRows / kLanes);
    const int64_t last = shape.num_strips() - first;
    const int64_t strips = last < kPanelRows / kLanes ? last : kPanelRows / kLanes;
    for (int64_t s = 0; s < strips; ++s) {
        const uint8_t* weight = static_cast<const uint8_t*>(args.weight);
        product<kTileTokens>(shape, weight + (first + s) * shape.strip_bytes(), tile,
                             sums + s * kLanes);
    }
    for (int64_t m = 0; m < tile.size(); ++m) {
        finish_row(args.output, tile.tokens.begin + m, panel * kPanelRows, strips * kLanes,
                   sums + m * kPanelRows);
    }
}

inline void run_share(const QuantizedLinearArgs& args, const Range& panels) {
    const Tiling tiling{args};
    const int64_t fitting = kBlockBytes / (kTileTokens * args.shape.x_row_bytes());
    const int64_t block = fitting > 1 ? fitting : 1;
    for (int64_t first = 0; first < tiling.count; first += block) {
        const int64_t end = first + block < tiling.count ? first + block : tiling.count;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            for (int64_t i = first; i < end; ++i) run_tile(args, panel, tiling.tile(i));
        }
    }
}

void run_dots_linear(const QuantizedLinearArgs& args) {
    if (args.m == 0) return;
    for_each_range(args.num_threads, args.m,
                   [&](const Range& tokens) { round_tokens(args, tokens); });
    for_each_range(args.num_threads, ceil_div(args.shape.n, kPanelRows),
                   [&](const Range& panels) { run_share(args, panels); });
}

}  // namespace
}  // namespace hal::cpu
