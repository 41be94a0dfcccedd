// Dense layer on codes, x rounded to codes on the way. Tokens run in tiles of up to 16 whose sums
// stay in registers over the whole depth, so a strip of 16 weight rows is unpacked once for a tile:
//   1 token         one linear stream of the weight, at memory bandwidth
//   2 to 16 tokens  the same stream, each unpacked register used by every token
//   more            tiles pass over a panel of 4 strips that stays in L2, beside a block of x
#include "arena.h"
#include "epilogue_avx512.h"
#include "quantize_avx512.h"
#include "threads.h"

namespace hal::cpu {
namespace {

constexpr int64_t kTileTokens = 16;

// How much of rounded x may stay in L2 beside the panel of the weight.
constexpr int64_t kBlockBytes = 512 << 10;

// As in tile_avx512.h: beyond the reach of the hardware's prefetchers, which stop at the page.
constexpr int64_t kPrefetchBytes = 4096;

// The tokens of a tile lie interleaved by 4 columns, as a tile reads them: codes [units][tokens],
// then scales [x_groups][tokens] and offsets [x_groups][tokens].
struct Tile {
    Range tokens;
    int32_t* codes;
    float* scales;
    int32_t* offsets;

    int64_t size() const { return tokens.end - tokens.begin; }
};

struct Tiling {
    const QuantizedLinearArgs& args;
    int64_t count = ceil_div(args.m, kTileTokens);

    Tile tile(int64_t index) const {
        const QuantizedShape& shape = args.shape;
        const Range tokens = share(args.m, index, count);
        const int64_t size = tokens.end - tokens.begin;
        char* base = static_cast<char*>(args.scratch) + tokens.begin * shape.x_row_bytes();
        int32_t* codes = reinterpret_cast<int32_t*>(base);
        float* scales = reinterpret_cast<float*>(codes + shape.units() * size);
        int32_t* offsets = reinterpret_cast<int32_t*>(scales + shape.x_groups() * size);
        return {tokens, codes, scales, offsets};
    }
    int64_t index_of(int64_t token) const { return ((token + 1) * count - 1) / args.m; }
};

// Codes of 16 columns of one token; returns their sum.
int store_codes(int32_t* to, int64_t stride, int64_t units, __m512i codes) {
    const __m128i bytes = _mm512_cvtepi32_epi8(codes);
    alignas(16) int32_t lanes[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(lanes), bytes);
    for (int64_t i = 0; i < 4 && i < units; ++i) to[i * stride] = lanes[i];
    return _mm512_reduce_add_epi32(codes);
}

void round_token8(const FloatRow& row, const QuantizedShape& shape, const Tile& tile, int64_t m) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t k = 0; k < row.columns; k += kLanes) {
        largest = _mm512_max_epu32(largest, magnitude_bits(row.load16(k)));
    }
    const Scale8 scale = scale8(_mm512_reduce_max_epu32(largest));
    int sum = 0;
    for (int64_t u = 0; u < shape.units(); u += 4) {
        const __m512i codes = rounded_codes(row.load16(4 * u), scale.inverse);
        sum += store_codes(tile.codes + u * tile.size() + m, tile.size(), shape.units() - u, codes);
    }
    tile.scales[m] = scale.scale;
    tile.offsets[m] = -int(shape.offset()) * sum;
}

void round_token4(const FloatRow& row, const QuantizedShape& shape, const Tile& tile, int64_t m) {
    const int64_t size = tile.size();
    for (int64_t group = 0; group < shape.x_groups(); ++group) {
        const __m512 a = row.load16(32 * group), b = row.load16(32 * group + kLanes);
        const __m512i largest = _mm512_max_epu32(magnitude_bits(a), magnitude_bits(b));
        const Scale8 scale = scale8(_mm512_reduce_max_epu32(largest));
        int32_t* codes = tile.codes + 8 * group * size + m;
        const int sum = store_codes(codes, size, 4, rounded_codes(a, scale.inverse)) +
                        store_codes(codes + 4 * size, size, 4, rounded_codes(b, scale.inverse));
        tile.scales[group * size + m] = scale.scale;
        tile.offsets[group * size + m] = -int(shape.offset()) * sum;
    }
}

void round_tokens(const QuantizedLinearArgs& args, const Range& tokens) {
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

void run_tile(const QuantizedLinearArgs& args, int64_t panel, const Tile& tile) {
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

void run_share(const QuantizedLinearArgs& args, const Range& panels) {
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

// One thread's part; all threads of the parallel region come here together.
void run_product(const QuantizedLinearArgs& args) {
    const int64_t thread = thread_index(), threads = thread_count();
    const Range panels = share(ceil_div(args.shape.n, kPanelRows), thread, threads);
    if (args.m == 1) {
        // Every thread rounds the one token: waiting for another to do it takes as long.
        static thread_local Arena arena;
        QuantizedLinearArgs own = args;
        own.scratch = arena.reserve(args.shape.x_row_bytes());
        round_tokens(own, {0, 1});
        run_share(own, panels);
        return;
    }
    round_tokens(args, share(args.m, thread, threads));
#pragma omp barrier
    run_share(args, panels);
}

}  // namespace

void quantized_linear(const QuantizedLinearArgs& args) {
    if (args.m == 0) return;
#pragma omp parallel num_threads(args.num_threads)
    {
        if (args.shape.codes == Codes::kDots) {
            run_product(args);
        } else {
            decoded_product(args);
        }
    }
}

}  // namespace hal::cpu
