// Dense layer on codes that are decoded to floats on the way; x keeps its dtype. Tokens run in tiles
// of up to 16 whose sums stay in registers, so a strip of 16 weight rows is decoded once for a tile:
//   1 token         each strip is one linear stream of the weight, at memory bandwidth
//   2 to 16 tokens  the same streams, each decoded register used by every token
//   more            tiles pass over a panel of 4 strips that stays in L2, beside a block of x
// Decoding costs a fifth of the dots of 16 tokens and runs beside them. Panels decoded to memory for
// the tiles of linear_avx512.cpp measured slower at every number of tokens up to 128.
#include "arena.h"
#include "decode_avx512.h"
#include "epilogue_avx512.h"
#include "threads.h"

namespace hal::cpu {
namespace {

constexpr int64_t kTileTokens = 16;

// As in linear_vnni_avx512.cpp.
constexpr int64_t kBlockBytes = 512 << 10;
constexpr int64_t kPrefetchBytes = 4096;

// Up to 4 strips, whose sums are finished together.
struct Panel {
    Strip first;
    int64_t strips;

    Panel(const QuantizedShape& shape, const void* weight, int64_t index)
        : first(shape, weight, index * kStrips) {
        const int64_t left = shape.num_strips() - index * kStrips;
        strips = left < kStrips ? left : kStrips;
    }

    static constexpr int64_t kStrips = kPanelRows / kLanes;
};

// Tokens whose x lies interleaved in scratch: 32 bits of each, then the next of each, with zeros up
// to whole units of the weight.
template <class T>
struct Tile {
    Range tokens;
    T* x;

    int64_t size() const { return tokens.end - tokens.begin; }
};

template <class T>
struct Tiling {
    const QuantizedLinearArgs& args;
    int64_t count = ceil_div(args.m, kTileTokens);

    int64_t row_size() const { return 4 * args.shape.units(); }
    Tile<T> tile(int64_t index) const {
        const Range tokens = share(args.m, index, count);
        return {tokens, static_cast<T*>(args.scratch) + tokens.begin * row_size()};
    }
    int64_t index_of(int64_t token) const { return ((token + 1) * count - 1) / args.m; }

    void interleave(const Range& tokens) const {
        constexpr int64_t step = 4 / sizeof(T);
        for (int64_t token = tokens.begin; token < tokens.end; ++token) {
            const Tile<T> to = tile(index_of(token));
            const T* from = static_cast<const T*>(args.x) + token * args.x_stride;
            T* column = to.x + (token - to.tokens.begin) * step;
            for (int64_t k = 0; k < row_size(); ++k) {
                column[k / step * step * to.size() + k % step] = k < args.shape.k ? from[k] : T{};
            }
        }
    }
};

// dot[m][strip] += x of two columns . a decoded pair.
template <int M, int NV>
inline const Bf16* add_pair(__m512 (&dot)[M][NV], int v, const Bf16* x, __m512i pair) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
        int two;
        __builtin_memcpy(&two, x + 2 * m, sizeof two);
        dot[m][v] = _mm512_dpbf16_ps(dot[m][v], (__m512bh)_mm512_set1_epi32(two), (__m512bh)pair);
    }
    return x + 2 * M;
}
template <int M, int NV>
inline const float* add_pair(__m512 (&dot)[M][NV], int v, const float* x, __m512i pair) {
    const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    const __m512 second =
        _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000))));
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
        dot[m][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[m]), first, dot[m][v]);
        dot[m][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[M + m]), second, dot[m][v]);
    }
    return x + 2 * M;
}

// sums[m * 64 + row] of NV strips that follow `first`.
template <class Decoder, class T, int M, int NV>
[[gnu::noinline]] void product(const Strip& first, const T* x, float* sums) {
    const QuantizedShape& shape = first.shape;
    const Decoder decoder(shape);
    const int64_t groups = shape.groups(), next_strip = shape.strip_bytes();
    for (int64_t group = 0; group < groups; ++group) {
        __m512 dot[M][NV];
        __m512i zeros[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            zeros[v] = first.after(v).template zeros<Decoder>(group);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) dot[m][v] = _mm512_setzero_ps();
        }
        const uint8_t* codes = first.codes(group);
        const uint8_t* end = codes + 64 * first.units(group);
        for (; codes < end; codes += 64) {
            const T* next = x;
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                const uint8_t* from = codes + v * next_strip;
                __m512i pairs[Decoder::kPairs];
                decoder.decode(from, zeros[v], pairs);
                _mm_prefetch(reinterpret_cast<const char*>(from) + kPrefetchBytes / NV,
                             _MM_HINT_T0);
                next = x;
#pragma GCC unroll 4
                for (int i = 0; i < Decoder::kPairs; ++i) next = add_pair(dot, v, next, pairs[i]);
            }
            x = next;
        }
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            const __m512 scale = first.after(v).template scales<Decoder>(group);
#pragma GCC unroll 16
            for (int m = 0; m < M; ++m) {
                float* sum = sums + m * kPanelRows + v * kLanes;
                _mm512_storeu_ps(sum, _mm512_fmadd_ps(dot[m][v], scale, load(sum)));
            }
        }
    }
}

// All strips of a panel, as many at a time as leave room in the registers.
template <class Decoder, class T, int M>
void panel_product(const Panel& panel, const T* x, float* sums) {
    constexpr int kWidth = M <= 3 ? 4 : M <= 5 ? 2 : 1;  // as measured
    int64_t s = 0;
    for (; s + kWidth <= panel.strips; s += kWidth) {
        product<Decoder, T, M, kWidth>(panel.first.after(s), x, sums + s * kLanes);
    }
    for (; s < panel.strips; ++s) {
        product<Decoder, T, M, 1>(panel.first.after(s), x, sums + s * kLanes);
    }
}

// panel_product<tokens> for a number known at run time, at most M.
template <class Decoder, class T, int M>
void panel_of(const Panel& panel, const Tile<T>& tile, float* sums) {
    if constexpr (M > 1) {
        if (tile.size() < M) return panel_of<Decoder, T, M - 1>(panel, tile, sums);
    }
    panel_product<Decoder, T, M>(panel, tile.x, sums);
}

template <class Decoder, class T>
void run_tile(const QuantizedLinearArgs& args, int64_t index, const Tile<T>& tile) {
    alignas(64) float sums[kTileTokens * kPanelRows] = {};
    const Panel panel(args.shape, args.weight, index);
    panel_of<Decoder, T, kTileTokens>(panel, tile, sums);
    for (int64_t m = 0; m < tile.size(); ++m) {
        finish_row(args.output, tile.tokens.begin + m, index * kPanelRows, panel.strips * kLanes,
                   sums + m * kPanelRows);
    }
}

template <class Decoder, class T>
void run_share(const QuantizedLinearArgs& args, const Range& panels) {
    const Tiling<T> tiling{args};
    const int64_t tile_bytes = kTileTokens * tiling.row_size() * int64_t(sizeof(T));
    const int64_t block = tile_bytes < kBlockBytes ? kBlockBytes / tile_bytes : 1;
    for (int64_t first = 0; first < tiling.count; first += block) {
        const int64_t end = first + block < tiling.count ? first + block : tiling.count;
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            for (int64_t i = first; i < end; ++i) run_tile<Decoder>(args, panel, tiling.tile(i));
        }
    }
}

template <class T>
void run_codes(const QuantizedLinearArgs& args, const Range& panels) {
    if (!args.shape.is_int4()) return run_share<ByteDecoder, T>(args, panels);
    if (args.shape.has_zeros) return run_share<NibbleDecoder<true>, T>(args, panels);
    run_share<NibbleDecoder<false>, T>(args, panels);
}

template <class T>
void run_thread(const QuantizedLinearArgs& args) {
    const int64_t thread = thread_index(), threads = thread_count();
    const Range panels = share(ceil_div(args.shape.n, kPanelRows), thread, threads);
    if (args.m == 1) {
        // Every thread prepares the one token: waiting for another to do it takes as long.
        static thread_local Arena arena;
        QuantizedLinearArgs own = args;
        own.scratch = arena.reserve(4 * args.shape.units() * int64_t(sizeof(T)));
        Tiling<T>{own}.interleave({0, 1});
        run_codes<T>(own, panels);
        return;
    }
    Tiling<T>{args}.interleave(share(args.m, thread, threads));
#pragma omp barrier
    run_codes<T>(args, panels);
}

}  // namespace

void decoded_product(const QuantizedLinearArgs& args) {
    if (args.x_dtype == DType::kBfloat16) {
        run_thread<Bf16>(args);
    } else {
        run_thread<float>(args);
    }
}

}  // namespace hal::cpu
