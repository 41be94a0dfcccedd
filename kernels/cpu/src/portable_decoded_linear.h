// Dense layer on codes that become floats on the way, by x as it is, widened to float32. Tokens run
// in tiles whose sums of a group stay in registers, so weight rows are decoded once for a tile. Of
// few tokens several strips of 16 rows go together, so that no sum waits for the one before it.
#pragma once

#include "portable_epilogue.h"
#include "portable_quantize.h"

namespace hal::cpu {
namespace {

constexpr int kDecodedTokens = kParts == 1 ? 8 : kParts == 2 ? 4 : 5;

// As many chains of sums as hide the latency of a multiply-add; at most a panel.
constexpr int strips_together(int tokens) {
    const int strips = 8 / (tokens * kParts);
    return strips > 4 ? 4 : strips > 1 ? strips : 1;
}

// How much of x may stay in cache beside the panel of the weight.
constexpr int64_t kDecodedBlockBytes = 128 << 10;

// Beyond the reach of the hardware's prefetchers, which stop at the page.
constexpr int64_t kDecodedPrefetchBytes = 4096;

// int8 as a sign and a magnitude of 7 bits, in the lowest byte of what may hold more.
struct Int8Decoder {
    static Floats decode(Ints code) {
        const Ints sign = bit_and(shift_left<24>(code), splat(int32_t(0x80000000)));
        return as_floats(bit_or(as_ints(to_floats(bit_and(code, splat(0x7f)))), sign));
    }
};

// e4m3 likewise: the upper bits of a float, but for the exponent's bias. Those without an exponent
// count in 2^-9, which is what is left when the leading 1 of a float is taken off again.
struct Fp8Decoder {
    static Floats decode(Ints code) {
        const Ints sign = bit_and(shift_left<24>(code), splat(int32_t(0x80000000)));
        const Ints magnitude = bit_and(code, splat(0x7f)), bits = shift_left<20>(magnitude);
        const Floats small = as_floats(bit_or(bits, splat(121 << 23))) - splat(0x1p-6f);
        const Ints is_normal = is_greater(magnitude, splat(7));
        const Ints value = choose(is_normal, add(bits, splat(120 << 23)), as_ints(small));
        return as_floats(bit_or(value, sign));
    }
};

// What 64 bytes of codes hold of 16 rows, and how: see QuantizedShape.
template <class Decoder>
struct ByteCodes {
    static constexpr int kColumns = 4;

    static Floats scales(const QuantizedShape&, const uint8_t* strip, int64_t, int part) {
        return load(reinterpret_cast<const float*>(strip) + part * kWidth);
    }
    static Ints zeros(const QuantizedShape&, const uint8_t*, int64_t, int) { return splat(0); }

    template <int kColumn>
    static Floats column(Ints codes, Ints) {
        const Ints pairs = kColumn < 2 ? lower_halves(codes) : upper_halves(codes);
        return Decoder::decode(kColumn % 2 == 0 ? pairs : shift_right<8>(pairs));
    }
};

template <bool kZeros>
struct NibbleCodes {
    static constexpr int kColumns = 8;

    static Floats scales(const QuantizedShape& shape, const uint8_t* strip, int64_t group,
                         int part) {
        const uint8_t* scales = strip + shape.scales_at(group);
        return load(reinterpret_cast<const Bf16*>(scales) + part * kWidth);
    }
    static Ints zeros(const QuantizedShape& shape, const uint8_t* strip, int64_t group, int part) {
        if constexpr (!kZeros) return splat(8);
        return load_widened(strip + shape.zeros_at(group) + part * kWidth);
    }
    template <int kColumn>
    static Floats column(Ints codes, Ints zeros) {
        constexpr int kShift = kColumn / 2 * 4 + kColumn % 2 * 16;
        return to_floats(sub(bit_and(shift_right<kShift>(codes), splat(15)), zeros));
    }
};

// Columns from `kColumn` on of 64 bytes of NV strips, times x of M tokens: [columns][M].
template <class Format, int kColumn, int M, int NV>
inline void add_decoded(Floats (&dot)[M][NV * kParts], const uint8_t* codes, int64_t next_strip,
                        const Ints (&zeros)[NV * kParts], const float* x) {
    Floats values[NV * kParts];
#pragma GCC unroll 8
    for (int v = 0; v < NV * kParts; ++v) {
        const uint8_t* from = codes + v / kParts * next_strip + v % kParts * 4 * kWidth;
        values[v] = Format::template column<kColumn>(load_bytes(from), zeros[v]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Floats value = splat(x[kColumn * M + m]);
#pragma GCC unroll 8
        for (int v = 0; v < NV * kParts; ++v) dot[m][v] = fma(value, values[v], dot[m][v]);
    }
    if constexpr (kColumn + 1 < Format::kColumns) {
        add_decoded<Format, kColumn + 1, M, NV>(dot, codes, next_strip, zeros, x);
    }
}

// sums[m * 64 + row] of NV strips that follow each other.
template <class Format, int M, int NV>
[[gnu::noinline]] void decoded_product(const QuantizedShape& shape, const uint8_t* strip,
                                       const float* x, float* sums) {
    const int64_t next_strip = shape.strip_bytes();
    const int64_t depth = shape.is_int4() ? shape.group : 4 * shape.units();
    for (int64_t group = 0; group < shape.groups(); ++group) {
        Floats dot[M][NV * kParts];
        Ints zeros[NV * kParts];
#pragma GCC unroll 8
        for (int v = 0; v < NV * kParts; ++v) {
            zeros[v] = Format::zeros(shape, strip + v / kParts * next_strip, group, v % kParts);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) dot[m][v] = splat(0.0f);
        }
        const int64_t left = 4 * shape.units() - group * depth;
        const uint8_t* codes = strip + shape.codes_at(group * (depth / 4));
        for (int64_t k = 0; k < (left < depth ? left : depth); k += Format::kColumns) {
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                __builtin_prefetch(codes + v * next_strip + kDecodedPrefetchBytes / NV);
            }
            add_decoded<Format, 0, M, NV>(dot, codes, next_strip, zeros, x);
            codes += 64;
            x += Format::kColumns * M;
        }
#pragma GCC unroll 8
        for (int v = 0; v < NV * kParts; ++v) {
            const Floats scale =
                Format::scales(shape, strip + v / kParts * next_strip, group, v % kParts);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                float* sum = sums + m * kPanelRows + v * kWidth;
                store(sum, fma(dot[m][v], scale, load(sum)));
            }
        }
    }
}

// Up to 4 strips of a panel.
template <class Format, int M>
void decoded_panel(const QuantizedShape& shape, const uint8_t* strip, int64_t strips,
                   const float* x, float* sums) {
    constexpr int kTogether = strips_together(M);
    for (; strips >= kTogether; strips -= kTogether, sums += kTogether * kLanes) {
        decoded_product<Format, M, kTogether>(shape, strip, x, sums);
        strip += kTogether * shape.strip_bytes();
    }
    for (; strips > 0; --strips, sums += kLanes, strip += shape.strip_bytes()) {
        decoded_product<Format, M, 1>(shape, strip, x, sums);
    }
}

// decoded_panel<tokens> for a number known at run time, at most M.
template <class Format, int M>
void decoded_tokens(const QuantizedShape& shape, const uint8_t* strip, int64_t strips,
                    const float* x, int64_t tokens, float* sums) {
    if constexpr (M > 1) {
        if (tokens < M) {
            return decoded_tokens<Format, M - 1>(shape, strip, strips, x, tokens, sums);
        }
    }
    decoded_panel<Format, M>(shape, strip, strips, x, sums);
}

// Near-equal tiles of tokens, whose x lies in scratch as [columns][tokens].
template <class T>
struct InterleavedTiles {
    const QuantizedLinearArgs& args;
    int64_t count = ceil_div(args.m, kDecodedTokens);

    int64_t columns() const { return 4 * args.shape.units(); }
    Range tokens(int64_t index) const { return share(args.m, index, count); }
    int64_t index_of(int64_t token) const { return ((token + 1) * count - 1) / args.m; }
    T* x(const Range& tokens) const {
        return static_cast<T*>(args.scratch) + tokens.begin * columns();
    }
    void interleave(int64_t token) const {
        const T* from = static_cast<const T*>(args.x) + token * args.x_stride;
        const Range tile = tokens(index_of(token));
        const int64_t size = tile.end - tile.begin;
        T* to = x(tile) + (token - tile.begin);
        for (int64_t k = 0; k < columns(); ++k) to[k * size] = k < args.shape.k ? from[k] : T{};
    }
};

// x of tiles from `first` up to `end` in float32: copied unless it is that already.
inline const float* widened(const InterleavedTiles<float>& tiles, int64_t first, int64_t, Arena&) {
    return tiles.x(tiles.tokens(first));
}
inline const float* widened(const InterleavedTiles<Bf16>& tiles, int64_t first, int64_t end,
                            Arena& arena) {
    const Range tokens{tiles.tokens(first).begin, tiles.tokens(end - 1).end};
    const int64_t size = (tokens.end - tokens.begin) * tiles.columns();
    float* to = reinterpret_cast<float*>(arena.reserve(4 * size));
    const Bf16* from = tiles.x(tokens);
    for (int64_t i = 0; i < size; i += kWidth) store(to + i, load(from + i, size - i), size - i);
    return to;
}

template <class Format>
void run_decoded_tile(const QuantizedLinearArgs& args, int64_t panel, const Range& tokens,
                      const float* x) {
    alignas(64) float sums[kDecodedTokens * kPanelRows] = {};
    const QuantizedShape& shape = args.shape;
    const int64_t first = panel * (kPanelRows / kLanes);
    const int64_t last = shape.num_strips() - first;
    const int64_t strips = last < kPanelRows / kLanes ? last : kPanelRows / kLanes;
    const uint8_t* weight = static_cast<const uint8_t*>(args.weight);
    const int64_t size = tokens.end - tokens.begin;
    decoded_tokens<Format, kDecodedTokens>(shape, weight + first * shape.strip_bytes(), strips, x,
                                           size, sums);
    for (int64_t m = 0; m < size; ++m) {
        finish_row(args.output, tokens.begin + m, panel * kPanelRows, strips * kLanes,
                   sums + m * kPanelRows);
    }
}

template <class Format, class T>
void run_decoded_share(const QuantizedLinearArgs& args, const Range& panels) {
    static thread_local Arena arena;
    const InterleavedTiles<T> tiles{args};
    const int64_t fitting = kDecodedBlockBytes / (4 * kDecodedTokens * tiles.columns());
    const int64_t block = fitting > 1 ? fitting : 1;
    for (int64_t first = 0; first < tiles.count; first += block) {
        const int64_t end = first + block < tiles.count ? first + block : tiles.count;
        const float* x = widened(tiles, first, end, arena);
        const int64_t before = tiles.tokens(first).begin;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            for (int64_t i = first; i < end; ++i) {
                const Range tokens = tiles.tokens(i);
                run_decoded_tile<Format>(args, panel, tokens,
                                         x + (tokens.begin - before) * tiles.columns());
            }
        }
    }
}

template <class T>
void run_decoded(const QuantizedLinearArgs& args) {
    const InterleavedTiles<T> tiles{args};
    for_each(args.num_threads, args.m, true, [&](int64_t token) { tiles.interleave(token); });
    const bool is_fp8 = args.shape.codes == Codes::kDecodedFp8;
    const auto run = args.shape.has_zeros   ? run_decoded_share<NibbleCodes<true>, T>
                     : args.shape.is_int4() ? run_decoded_share<NibbleCodes<false>, T>
                     : is_fp8               ? run_decoded_share<ByteCodes<Fp8Decoder>, T>
                                            : run_decoded_share<ByteCodes<Int8Decoder>, T>;
    for_each_range(args.num_threads, ceil_div(args.shape.n, kPanelRows),
                   [&](const Range& panels) { run(args, panels); });
}

void run_decoded_linear(const QuantizedLinearArgs& args) {
    if (args.m == 0) return;
    const auto run = args.x_dtype == DType::kBfloat16 ? run_decoded<Bf16> : run_decoded<float>;
    run(args);
}

}  // namespace
}  // namespace hal::cpu
