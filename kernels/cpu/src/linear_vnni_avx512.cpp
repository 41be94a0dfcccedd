// Dense layer on codes, x rounded to codes on the way. Tokens run in tiles of up to 16 whose sums
// stay in registers over the whole depth, so a strip of 16 weight rows is unpacked once for a tile:
//   1 token         one linear stream of the weight, at memory bandwidth
//   2 to 16 tokens  the same stream, each unpacked register used by every token
//   more            tiles pass over a panel of 4 strips that stays in L2, beside a block of x
#include "arena.h"
#include "epilogue_avx512.h"
#include "rounded_x_avx512.h"
#include "threads.h"

namespace hal::cpu {
namespace {

// How much of rounded x may stay in L2 beside the panel of the weight.
constexpr int64_t kBlockBytes = 512 << 10;

// As in tile_avx512.h: beyond the reach of the hardware's prefetchers, which stop at the page.
constexpr int64_t kPrefetchBytes = 4096;

inline __m512i broadcast(const int32_t* p) { return _mm512_set1_epi32(*p); }
inline __m512i bytes16(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// sums[m * 64 + row] of 16 weight rows.
template <int M>
[[gnu::noinline]] void product8(const QuantizedShape& shape, const uint8_t* strip, const Tile& tile,
                                float* sums) {
    const uint8_t* weight = strip + shape.codes_at(0);
    const int32_t* x = tile.codes;
    __m512i dot[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) dot[m] = broadcast(tile.offsets + m);
    for (int64_t u = 0; u < shape.units(); ++u, weight += 64, x += M) {
        const __m512i codes = _mm512_loadu_si512(weight);
        _mm_prefetch(reinterpret_cast<const char*>(weight) + kPrefetchBytes, _MM_HINT_T0);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) dot[m] = _mm512_dpbusd_epi32(dot[m], codes, broadcast(x + m));
    }
    const __m512 scale = load(reinterpret_cast<const float*>(strip));
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(tile.scales[m]));
        _mm512_storeu_ps(sums + m * kPanelRows, _mm512_mul_ps(_mm512_cvtepi32_ps(dot[m]), both));
    }
}

// A dot's share of the codes' offsets: what the rounding of x found, with zero points times those.
template <bool kZeros>
inline __m512i first_sum(const int32_t* offset, __m512i zeros) {
    if constexpr (!kZeros) return broadcast(offset);
    return _mm512_dpwssd_epi32(_mm512_setzero_si512(), zeros, broadcast(offset));
}

template <int M, bool kZeros>
[[gnu::noinline]] void product4(const QuantizedShape& shape, const uint8_t* strip, const Tile& tile,
                                float* sums) {
    const uint8_t* weight = strip;
    const __m512i low = _mm512_set1_epi8(15);
    const int64_t parts = shape.group / 32;  // of 32 columns in a group
    const uint8_t* header = nullptr;  // scales of a few groups, then their zero points
    const int32_t* x = tile.codes;
    const float* x_scales = tile.scales;
    const int32_t* offsets = tile.offsets;
    __m512 acc[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) acc[m] = _mm512_setzero_ps();
    constexpr int64_t header_groups = kZeros ? 4 : 2, header_bytes = kZeros ? 192 : 64;
    for (int64_t i = 0, part = 0, group = 0; i < shape.x_groups(); ++i) {
        if (part == 0 && group == 0) {
            header = weight;
            weight += header_bytes;
            for (int64_t at = 0; at < header_bytes; at += 64) {
                _mm_prefetch(reinterpret_cast<const char*>(header) + at + kPrefetchBytes,
                             _MM_HINT_T0);
            }
        }
        const __m512 scale = load(reinterpret_cast<const Bf16*>(header) + group * kLanes);
        const __m512i zeros = kZeros ? bytes16(header + (2 * header_groups + group) * kLanes)
                                     : _mm512_setzero_si512();
        if (++part == parts) {
            part = 0;
            group = group + 1 == header_groups ? 0 : group + 1;
        }
        __m512i codes[8];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const __m512i pair = _mm512_loadu_si512(weight + 64 * j);
            _mm_prefetch(reinterpret_cast<const char*>(weight) + 64 * j + kPrefetchBytes,
                         _MM_HINT_T0);
            codes[2 * j] = _mm512_and_si512(pair, low);
            codes[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), low);
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            __m512i dot = first_sum<kZeros>(offsets + m, zeros);
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                dot = _mm512_dpbusd_epi32(dot, codes[j], broadcast(x + j * M + m));
            }
            const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[m]));
            acc[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), both, acc[m]);
        }
        weight += 256;
        x += 8 * M;
        x_scales += M;
        offsets += M;
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) _mm512_storeu_ps(sums + m * kPanelRows, acc[m]);
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

void run_tile(const QuantizedLinearArgs& args, const Range& strips, const Tile& tile) {
    alignas(64) float sums[kTileTokens * kPanelRows];
    const QuantizedShape& shape = args.shape;
    const uint8_t* weight = static_cast<const uint8_t*>(args.weight);
    for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
        product<kTileTokens>(shape, weight + strip * shape.strip_bytes(), tile,
                             sums + (strip - strips.begin) * kLanes);
    }
    for (int64_t m = 0; m < tile.size(); ++m) {
        finish_row(args.output, tile.tokens.begin + m, strips.begin * kLanes,
                   (strips.end - strips.begin) * kLanes, sums + m * kPanelRows);
    }
}

// Threads share pairs of a panel and a tile, panel by panel, so that all have work where a weight
// has few rows. With one tile a panel is half as high, for the same reason; a gate and its up
// are still in one.
struct Sharing {
    const QuantizedLinearArgs& args;
    const RoundedX& x;
    int64_t num_tiles = x.tiling().count;
    int64_t panel_strips = num_tiles == 1 ? 2 : kPanelRows / kLanes;

    int64_t num_pairs() const {
        return ceil_div(args.shape.num_strips(), panel_strips) * num_tiles;
    }
    Range strips(int64_t panel) const {
        const int64_t end = (panel + 1) * panel_strips, last = args.shape.num_strips();
        return {panel * panel_strips, end < last ? end : last};
    }
};

// Part of `range` that lies in [first, end).
inline Range cut(const Range& range, int64_t first, int64_t end) {
    return {range.begin > first ? range.begin : first, range.end < end ? range.end : end};
}

void run_range(const QuantizedLinearArgs& args, const Sharing& sharing, const Range& mine) {
    const int64_t count = sharing.num_tiles;
    const int64_t fitting = kBlockBytes / (kTileTokens * args.shape.x_row_bytes());
    const int64_t block = fitting > 1 ? fitting : 1;
    for (int64_t first = 0; first < count; first += block) {
        for (int64_t panel = mine.begin / count; panel * count < mine.end; ++panel) {
            const int64_t start = panel * count;
            const Range tiles = cut({mine.begin - start, mine.end - start}, first,
                                    first + block < count ? first + block : count);
            for (int64_t i = tiles.begin; i < tiles.end; ++i) {
                run_tile(args, sharing.strips(panel), sharing.x.tile(i));
            }
        }
    }
}

}  // namespace

void quantized_linear(const QuantizedLinearArgs& args) {
    if (args.m == 0) return;
    static thread_local Arena arena;
    const RoundedX x(args, arena);
    const Sharing sharing{args, x};
    for_each_range(args.num_threads, sharing.num_pairs(),
                   [&](const Range& pairs) { run_range(args, sharing, pairs); });
}

}  // namespace hal::cpu
