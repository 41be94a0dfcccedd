// Dense layer on codes that are decoded to floats on the way; x keeps its dtype. Few tokens use a
// decoded register at once, many pass over a decoded block in cache:
//   up to kFewTokens   each panel is one linear stream, at one token at memory bandwidth
//   more               blocks of a panel are decoded to scratch, and the tiles of linear run on them
// A sum is one chain over the columns of its group in both, then scaled and added in the same way.
#include "arena.h"
#include "decode_avx512.h"
#include "epilogue_avx512.h"
#include "threads.h"
#include "tile_avx512.h"

namespace hal::cpu {
namespace {

constexpr int64_t kFewTokens = 8;

// As in linear_avx512.cpp; a block is a whole number of groups.
constexpr int64_t kBlockRows = 96;
constexpr int64_t kBlockDepth = 256;

// As in linear_vnni_avx512.cpp.
constexpr int64_t kStreamPrefetchBytes = 4096;

// x of a few tokens as their product reads it: 32 bits of each token, then the next of each, with
// zeros up to whole units.
template <class T>
void interleave(const DecodedLinearArgs& args, T* to) {
    constexpr int64_t step = 4 / sizeof(T);
    for (int64_t m = 0; m < args.m; ++m) {
        const T* from = static_cast<const T*>(args.x) + m * args.x_stride;
        for (int64_t k = 0; k < args.shape.padded_columns(); ++k) {
            to[(k / step * args.m + m) * step + k % step] = k < args.shape.k ? from[k] : T{};
        }
    }
}

// dot[m][strip] += x of two columns . a decoded pair.
template <int M, int NV>
inline const Bf16* add_pair(__m512 (&dot)[M][NV], int v, const Bf16* x, __m512i pair) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        int two;
        __builtin_memcpy(&two, x + 2 * m, sizeof two);
        dot[m][v] = hal::cpu::dot(dot[m][v], _mm512_set1_epi32(two), pair, x);
    }
    return x + 2 * M;
}
template <int M, int NV>
inline const float* add_pair(__m512 (&dot)[M][NV], int v, const float* x, __m512i pair) {
    const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    const __m512 second =
        _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000))));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        dot[m][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[m]), first, dot[m][v]);
        dot[m][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[M + m]), second, dot[m][v]);
    }
    return x + 2 * M;
}

// sums[m * 64 + row] of NV strips of a panel.
template <class Decoder, class T, int M, int NV>
[[gnu::noinline]] void product(const Panel& panel, int64_t strip, const T* x, float* sums) {
    const Decoder decoder(panel.shape);
    const int64_t groups = panel.shape.groups(), stride = 64 * panel.strips;
    for (int64_t group = 0; group < groups; ++group) {
        __m512 dot[M][NV];
        __m512i zeros[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            zeros[v] = panel.zeros<Decoder>(group, strip + v);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) dot[m][v] = _mm512_setzero_ps();
        }
        const uint8_t* codes = panel.codes(group) + 64 * strip;
        const uint8_t* end = codes + stride * panel.units(group);
        for (; codes < end; codes += stride) {
            const T* next = x;
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) {
                __m512i pairs[Decoder::kPairs];
                decoder.decode(codes + 64 * v, zeros[v], pairs);
                _mm_prefetch(reinterpret_cast<const char*>(codes) + 64 * v + kStreamPrefetchBytes,
                             _MM_HINT_T0);
                next = x;
#pragma GCC unroll 4
                for (int i = 0; i < Decoder::kPairs; ++i) next = add_pair(dot, v, next, pairs[i]);
            }
            x = next;
        }
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            const __m512 scale = panel.scales<Decoder>(group, strip + v);
#pragma GCC unroll 8
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
    constexpr int kWidth = M <= 4 ? 4 : 2;
    int64_t strip = 0;
    for (; strip + kWidth <= panel.strips; strip += kWidth) {
        product<Decoder, T, M, kWidth>(panel, strip, x, sums + strip * kLanes);
    }
    for (; strip < panel.strips; ++strip) {
        product<Decoder, T, M, 1>(panel, strip, x, sums + strip * kLanes);
    }
}

// panel_product<tokens> for a number known at run time, at most M.
template <class Decoder, class T, int M>
void panel_of(const Panel& panel, int64_t tokens, const T* x, float* sums) {
    if constexpr (M > 1) {
        if (tokens < M) return panel_of<Decoder, T, M - 1>(panel, tokens, x, sums);
    }
    panel_product<Decoder, T, M>(panel, x, sums);
}

template <class Decoder, class T>
void run_few(const DecodedLinearArgs& args, const Range& panels) {
    static thread_local Arena arena;
    const int64_t bytes = args.m * args.shape.padded_columns() * int64_t(sizeof(T));
    T* x = reinterpret_cast<T*>(arena.reserve(bytes));
    interleave(args, x);
    for (int64_t index = panels.begin; index < panels.end; ++index) {
        alignas(64) float sums[kFewTokens * kPanelRows] = {};
        const Panel panel(args.shape, args.weight, index);
        panel_of<Decoder, T, kFewTokens>(panel, args.m, x, sums);
        for (int64_t m = 0; m < args.m; ++m) {
            finish_row(args.output, m, index * kPanelRows, panel.strips * kLanes,
                       sums + m * kPanelRows);
        }
    }
}

inline void store_pair(Bf16* to, int64_t, __m512i pair) { _mm512_storeu_si512(to, pair); }
inline void store_pair(float* to, int64_t width, __m512i pair) {
    _mm512_storeu_si512(to, _mm512_slli_epi32(pair, 16));
    _mm512_storeu_si512(to + width, _mm512_and_si512(pair, _mm512_set1_epi32(int(0xffff0000))));
}

// `count` units of a group from unit `first`, as tile_avx512.h reads them.
template <class Decoder, class T>
void decode_units(const Decoder& decoder, const Panel& panel, int64_t group, int64_t first,
                  int64_t count, T* to) {
    const int64_t width = panel.strips * kLanes;
    for (int64_t strip = 0; strip < panel.strips; ++strip) {
        const __m512i zeros = panel.zeros<Decoder>(group, strip);
        const uint8_t* codes = panel.codes(group) + 64 * (first * panel.strips + strip);
        T* out = to + strip * kLanes * (4 / sizeof(T));
        for (int64_t u = 0; u < count; ++u, codes += 64 * panel.strips) {
            __m512i pairs[Decoder::kPairs];
            decoder.decode(codes, zeros, pairs);
#pragma GCC unroll 4
            for (int i = 0; i < Decoder::kPairs; ++i, out += 2 * width) {
                store_pair(out, width, pairs[i]);
            }
        }
    }
}

struct Block {
    const DecodedLinearArgs& args;
    const Panel& panel;
    Range rows;
    float* sums;

    int64_t num_rows() const { return rows.end - rows.begin; }
};

// sums += x . codes over columns k.. of a block, at most kBlockDepth; int4: scaled by group.
template <class Decoder, class T>
void add_block(const Decoder& decoder, const Block& block, int64_t k, T* scratch) {
    const DecodedShape& shape = block.args.shape;
    const Panel& panel = block.panel;
    const int64_t left = shape.k - k, width = panel.strips * kLanes;
    const int64_t columns = left < kBlockDepth ? left : kBlockDepth;
    const T* x = static_cast<const T*>(block.args.x) + block.rows.begin * block.args.x_stride + k;
    alignas(64) float scales[kPanelRows];
    for (int64_t c = 0; c < columns;) {
        const int64_t group = (k + c) / shape.depth(), first = k + c - group * shape.depth();
        const int64_t run = columns - c < shape.depth() ? columns - c : shape.depth();
        T* b = scratch + c * width;
        decode_units(decoder, panel, group, first / shape.unit_columns(),
                     ceil_div(run, shape.unit_columns()), b);
        for (int64_t s = 0; s < panel.strips; ++s) {
            _mm512_store_ps(scales + s * kLanes, panel.scales<Decoder>(group, s));
        }
        tile_block<T>({.a = x + c,
                       .a_stride = block.args.x_stride,
                       .b = b,
                       .k = run,
                       .c = block.sums,
                       .c_stride = kPanelRows,
                       .accumulate = !shape.is_int4() && k > 0,
                       .scales = shape.is_int4() ? scales : nullptr},
                      block.num_rows(), panel.strips);
        c += run;
    }
}

template <class Decoder, class T>
void run_block(const Block& block, T* scratch) {
    const DecodedLinearArgs& args = block.args;
    const Decoder decoder(args.shape);
    const Panel& panel = block.panel;
    for (int64_t k = 0; k < args.shape.k; k += kBlockDepth) add_block(decoder, block, k, scratch);
    if (args.shape.is_int4()) return;
    for (int64_t s = 0; s < panel.strips; ++s) {
        const __m512 scale = panel.scales<Decoder>(0, s);
        for (int64_t row = 0; row < block.num_rows(); ++row) {
            float* sum = block.sums + row * kPanelRows + s * kLanes;
            _mm512_storeu_ps(sum, _mm512_fmadd_ps(load(sum), scale, _mm512_setzero_ps()));
        }
    }
}

template <class Decoder, class T>
void run_many(const DecodedLinearArgs& args, const Range& blocks, int64_t row_blocks) {
    alignas(64) T scratch[kBlockDepth * kPanelRows];
    for (int64_t i = blocks.begin; i < blocks.end; ++i) {
        // Consecutive blocks share a panel, whose codes therefore stay in this core's L2.
        alignas(64) float sums[kBlockRows * kPanelRows] = {};
        const int64_t index = i / row_blocks;
        const Panel panel(args.shape, args.weight, index);
        const Block block{args, panel, share(args.m, i % row_blocks, row_blocks), sums};
        run_block<Decoder, T>(block, scratch);
        for (int64_t row = 0; row < block.num_rows(); ++row) {
            finish_row(args.output, block.rows.begin + row, index * kPanelRows,
                       panel.strips * kLanes, sums + row * kPanelRows);
        }
    }
}

template <class Decoder, class T>
void run_share(const DecodedLinearArgs& args, int64_t thread, int64_t num_threads) {
    const int64_t panels = args.shape.num_panels();
    if (args.m <= kFewTokens) return run_few<Decoder, T>(args, share(panels, thread, num_threads));
    const int64_t row_blocks = ceil_div(args.m, kBlockRows);
    run_many<Decoder, T>(args, share(panels * row_blocks, thread, num_threads), row_blocks);
}

template <class T>
void run_codes(const DecodedLinearArgs& args, int64_t thread, int64_t num_threads) {
    switch (args.shape.codes) {
        case Codes::kInt8:
        case Codes::kFp8:
            return run_share<ByteDecoder, T>(args, thread, num_threads);
        case Codes::kInt4:
            return run_share<NibbleDecoder<false>, T>(args, thread, num_threads);
        case Codes::kInt4Zeros:
            return run_share<NibbleDecoder<true>, T>(args, thread, num_threads);
    }
}

}  // namespace

void decoded_linear(const DecodedLinearArgs& args) {
    if (args.m == 0) return;
#pragma omp parallel num_threads(args.num_threads)
    {
        if (args.x_dtype == DType::kBfloat16) {
            run_codes<Bf16>(args, thread_index(), thread_count());
        } else {
            run_codes<float>(args, thread_index(), thread_count());
        }
    }
}

}  // namespace hal::cpu
