// Dense layer on codes that are decoded to floats on the way; x keeps its dtype. Tokens run in tiles
// of up to 16 whose sums stay in registers, so a strip of 16 weight rows is decoded once for a tile:
//   1 token         each strip is one linear stream of the weight, at memory bandwidth
//   2 to 16 tokens  the same streams, each decoded register used by every token
//   more            tiles pass over a panel of 4 strips that stays in L2, beside a block of x
// Decoding costs a fifth of the dots of 16 tokens and runs beside them. Panels decoded to memory for
// the tiles of linear_avx512.cpp measured slower at every number of tokens up to 128.
#include "decode_avx512.h"
#include "epilogue_avx512.h"
#include "norm_rows_avx512.h"
#include "on_demand.h"

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

// Of 64 bytes of which `bytes` are there.
inline __mmask64 byte_mask(int64_t bytes) {
    if (bytes >= 64) return ~__mmask64(0);
    return bytes > 0 ? (__mmask64(1) << bytes) - 1 : 0;
}

// 16 times 32 bits of every token of a tile, from column k. Bits are moved as they are.
template <class T>
void interleave(const QuantizedLinearArgs& args, const Tile<T>& tile, int64_t k, int64_t row_size) {
    constexpr int64_t step = 4 / sizeof(T);
    const T* x = static_cast<const T*>(args.x) + tile.tokens.begin * args.x_stride + k;
    T* to = tile.x + k * tile.size();
    const __mmask64 mask = byte_mask((args.shape.k - k) * int64_t(sizeof(T)));
    if (tile.size() == 1) {
        const __mmask64 stored = byte_mask((row_size - k) * int64_t(sizeof(T)));
        _mm512_mask_storeu_epi8(to, stored, _mm512_maskz_loadu_epi8(mask, x));
        return;
    }
    __m512i rows[kTileTokens] = {};
    for (int64_t m = 0; m < tile.size(); ++m) {
        rows[m] = _mm512_maskz_loadu_epi8(mask, x + m * args.x_stride);
    }
    transpose16(rows);
    const __mmask16 tokens = tail_mask(tile.size());
    for (int64_t i = 0; i < kLanes && k + i * step < row_size; ++i) {
        _mm512_mask_storeu_epi32(to + i * step * tile.size(), tokens, rows[i]);
    }
}

// x of one product: each tile is normed, where that is asked for, and interleaved when the first
// thread needs it.
template <class T>
class InterleavedX {
  public:
    InterleavedX(const QuantizedLinearArgs& args, Arena& arena)
        : args_(args), count_(ceil_div(args.m, kTileTokens)), on_demand_(arena, count_) {}

    int64_t count() const { return count_; }
    int64_t row_size() const { return 4 * args_.shape.units(); }
    Tile<T> tile(int64_t index) const {
        on_demand_.need({index, index + 1}, [&](int64_t unit) { make(place(unit)); });
        return place(index);
    }

  private:
    Tile<T> place(int64_t index) const {
        const Range tokens = share(args_.m, index, count_);
        return {tokens, static_cast<T*>(args_.scratch) + tokens.begin * row_size()};
    }
    void make(const Tile<T>& tile) const {
        if (args_.norm != nullptr) norm_rows(*args_.norm, tile.tokens);
        constexpr int64_t columns = 64 / sizeof(T);
        for (int64_t k = 0; k < row_size(); k += columns) {
            interleave(args_, tile, k, row_size());
        }
    }

    const QuantizedLinearArgs& args_;
    int64_t count_;
    OnDemand on_demand_;
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
        const int64_t scales_at = first.scales_at(group), zeros_at = first.zeros_at(group);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            zeros[v] = Decoder::kHasZeros ? zero_points(first.begin + v * next_strip + zeros_at)
                                          : _mm512_setzero_si512();
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
            const __m512 scale = Decoder::scales(first.begin + v * next_strip + scales_at);
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
void run_share(const QuantizedLinearArgs& args, const InterleavedX<T>& x, const Range& panels) {
    const int64_t tile_bytes = kTileTokens * x.row_size() * int64_t(sizeof(T));
    const int64_t block = tile_bytes < kBlockBytes ? kBlockBytes / tile_bytes : 1;
    for (int64_t first = 0; first < x.count(); first += block) {
        const int64_t end = first + block < x.count() ? first + block : x.count();
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            for (int64_t i = first; i < end; ++i) run_tile<Decoder>(args, panel, x.tile(i));
        }
    }
}

template <class T>
void run_codes(const QuantizedLinearArgs& args, const InterleavedX<T>& x, const Range& panels) {
    if (!args.shape.is_int4()) return run_share<ByteDecoder>(args, x, panels);
    if (args.shape.has_zeros) return run_share<NibbleDecoder<true>>(args, x, panels);
    run_share<NibbleDecoder<false>>(args, x, panels);
}

template <class T>
void run(const QuantizedLinearArgs& args) {
    static thread_local Arena arena;
    const InterleavedX<T> x(args, arena);
    for_each_range(args.num_threads, ceil_div(args.shape.n, kPanelRows),
                   [&](const Range& panels) { run_codes<T>(args, x, panels); });
}

}  // namespace

void decoded_linear(const QuantizedLinearArgs& args) {
    if (args.m == 0) return;
    if (args.x_dtype == DType::kBfloat16) {
        run<Bf16>(args);
    } else {
        run<float>(args);
    }
}

}  // namespace hal::cpu
