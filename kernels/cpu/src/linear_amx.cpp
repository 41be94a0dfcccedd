// Dense layers on AMX tiles, on weights as the AVX512 kernels store them: 16 rows of a panel or of
// a strip, with the 32 bits of depth that a dot product takes, are the second source of a tile
// product as they stand. A block of up to 32 tokens and two strips (32 rows, in a gated weight a
// gate and its up) has its sums in four tiles, so each tile of x and of weight is used twice.
//
// Codes: every group's dot is exact, then scaled and added as in linear_vnni_avx512.cpp: the same
// bits. bfloat16: tiles add 32 columns in two chains before they add to the sum, vdpbf16ps adds
// pair by pair: these bits differ from the AVX512 kernel's, though not with the number of tokens.
//
// Tested on emulated tiles only: its speed, and the sizes that it rests on, are not measured.
#include "amx_tiles.h"
#include "arena.h"
#include "epilogue_avx512.h"
#include "quantize_avx512.h"
#include "threads.h"

namespace hal::cpu {
namespace {

constexpr int64_t kBlockTokens = 2 * kTileTokens;
constexpr int64_t kBlockStrips = 2;
constexpr int64_t kBlockRows = kBlockStrips * kLanes;
constexpr int64_t kUnitBytes = 4;

// A tile product takes a step for each token that it holds, so few tokens leave most of it idle,
// and then the weight's bytes are what takes the time: the AVX512 kernels run them.
constexpr int64_t kFewTokens = 8;

// Of x: how much stays in L2 (2 MiB where there is AMX) while pairs of strips pass.
constexpr int64_t kCachedBytes = 1 << 20;

// x in rows: bfloat16, or codes.
struct TokenRows {
    const char* first;
    int64_t stride;
    int64_t bytes;  // of a row
    int64_t count;  // 1 to 32
};

// Two strips of 16 rows, or one: [units][16 rows][4 bytes].
struct Strips {
    const char* first;
    int64_t stride;       // from one to the other
    int64_t unit_stride;  // from one row of tiles to the next
    int64_t units;
    int64_t count;
};

// Sums of a block as tiles are stored: float32, or int32 of codes.
template <class T>
struct alignas(64) Sums {
    T at[kBlockTokens][kBlockRows];
};

void zero_tiles(int64_t tokens, int64_t strips) {
    _tile_zero(0);
    if (strips > 1) _tile_zero(1);
    if (tokens <= kTileTokens) return;
    _tile_zero(2);
    if (strips > 1) _tile_zero(3);
}

template <class T>
void store_tiles(int64_t tokens, int64_t strips, Sums<T>& sums) {
    constexpr int64_t stride = sizeof sums.at[0];
    _tile_stored(0, sums.at[0], stride);
    if (strips > 1) _tile_stored(1, sums.at[0] + kLanes, stride);
    if (tokens <= kTileTokens) return;
    _tile_stored(2, sums.at[kTileTokens], stride);
    if (strips > 1) _tile_stored(3, sums.at[kTileTokens] + kLanes, stride);
}

// The tile instructions take numbers of tiles as literals only.
#define HAL_DOT(sums, x, weight)                   \
    do {                                           \
        if constexpr (sizeof(T) == sizeof(Bf16)) { \
            _tile_dpbf16ps(sums, x, weight);       \
        } else {                                   \
            _tile_dpbsud(sums, x, weight);         \
        }                                          \
    } while (false)

// One step of the depth: T is Bf16, or int8_t for codes.
template <class T>
void add_step(const TokenRows& x, const Strips& weight) {
    _tile_loadd(4, x.first, x.stride);
    _tile_loadd(6, weight.first, weight.unit_stride);
    HAL_DOT(0, 4, 6);
    if (weight.count > 1) {
        _tile_loadd(7, weight.first + weight.stride, weight.unit_stride);
        HAL_DOT(1, 4, 7);
    }
    if (x.count <= kTileTokens) return;
    _tile_loadd(5, x.first + kTileTokens * x.stride, x.stride);
    HAL_DOT(2, 5, 6);
    if (weight.count > 1) HAL_DOT(3, 5, 7);
}

#undef HAL_DOT

// The last step where the depth does not fill it: copies with zeros behind, since what follows a
// row of x, or the last unit of a strip, is not theirs.
template <class T>
void add_rest(const TokenRows& x, const Strips& weight) {
    alignas(64) char tokens[kBlockTokens][kTileBytes] = {};
    alignas(64) char strips[kBlockStrips][kTileUnits][kTileBytes] = {};
    for (int64_t m = 0; m < x.count; ++m) {
        __builtin_memcpy(tokens[m], x.first + m * x.stride, size_t(x.bytes));
    }
    for (int64_t s = 0; s < weight.count; ++s) {
        for (int64_t u = 0; u < weight.units; ++u) {
            const char* from = weight.first + s * weight.stride + u * weight.unit_stride;
            __builtin_memcpy(strips[s][u], from, kTileBytes);
        }
    }
    publish(tokens);
    publish(strips);
    add_step<T>({tokens[0], kTileBytes, kTileBytes, x.count},
                {strips[0][0], sizeof strips[0], kTileBytes, kTileUnits, weight.count});
}

// Sums over the whole depth.
template <class T, class Sum>
void multiply(Tiles& tiles, TokenRows x, Strips weight, Sums<Sum>& sums) {
    tiles.configure(x.count, kTileUnits);
    zero_tiles(x.count, weight.count);
    while (x.bytes >= kTileBytes) {
        add_step<T>(x, weight);
        x.first += kTileBytes;
        x.bytes -= kTileBytes;
        weight.first += kTileUnits * weight.unit_stride;
        weight.units -= kTileUnits;
    }
    if (x.bytes > 0) add_rest<T>(x, weight);
    store_tiles(x.count, weight.count, sums);
}

// What a thread takes at once: tokens whose x stays in cache, and one pair of strips.
struct Work {
    Range tokens;
    int64_t pair;
};

struct Partition {
    int64_t tokens;
    int64_t pairs;
    int64_t block;  // tokens of x that are taken together

    Partition(int64_t m, int64_t n, int64_t x_bytes) : tokens(m), pairs(ceil_div(n, kBlockRows)) {
        const int64_t fitting = kCachedBytes / (kBlockTokens * x_bytes);
        block = kBlockTokens * (fitting > 1 ? fitting : 1);
    }
    int64_t count() const { return ceil_div(tokens, block) * pairs; }
    Work at(int64_t index) const {
        const int64_t first = index / pairs * block, rest = tokens - first;
        return {{first, first + (rest < block ? rest : block)}, index % pairs};
    }
};

int64_t strips_of(int64_t n, int64_t pair) {
    const int64_t rest = ceil_div(n, kLanes) - pair * kBlockStrips;
    return rest < kBlockStrips ? rest : kBlockStrips;
}

void finish(const LinearOutput& output, const Range& tokens, int64_t pair, int64_t strips,
            const Sums<float>& sums) {
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
        finish_row(output, token, pair * kBlockRows, strips * kLanes,
                   sums.at[token - tokens.begin]);
    }
}

Range tokens_of_block(const Range& tokens, int64_t first) {
    return {first, tokens.end - first < kBlockTokens ? tokens.end : first + kBlockTokens};
}

void run_bf16(Tiles& tiles, const LinearArgs& args, const Work& work) {
    const PackedShape& shape = args.shape;
    const int64_t row = work.pair * kBlockRows;
    const int64_t unit_stride = shape.panel_width(row / kPanelRows) * kUnitBytes;
    const Strips weight{static_cast<const char*>(args.weight) + 2 * shape.row_offset(row),
                        kLanes * kUnitBytes, unit_stride, shape.units(),
                        strips_of(shape.n, work.pair)};
    Sums<float> sums;
    for (int64_t m = work.tokens.begin; m < work.tokens.end; m += kBlockTokens) {
        const Range tokens = tokens_of_block(work.tokens, m);
        const TokenRows x{static_cast<const char*>(args.x) + 2 * m * args.x_stride,
                          2 * args.x_stride, 2 * shape.k, tokens.end - m};
        multiply<Bf16>(tiles, x, weight, sums);
        finish(args.output, tokens, work.pair, weight.count, sums);
    }
}

// Rounded x in scratch: codes [m][4 units], scales [m][x_groups], offsets [m][x_groups].
struct RoundedTokens {
    int8_t* codes;
    float* scales;
    int32_t* offsets;
    int64_t code_bytes;  // of a token
    int64_t groups;

    explicit RoundedTokens(const QuantizedLinearArgs& args)
        : codes(static_cast<int8_t*>(args.scratch)),
          code_bytes(kUnitBytes * args.shape.units()),
          groups(args.shape.x_groups()) {
        scales = reinterpret_cast<float*>(codes + args.m * code_bytes);
        offsets = reinterpret_cast<int32_t*>(scales + args.m * groups);
    }
};

// Columns [begin, end) of one token under one scale. Writes up to `end` rounded up to 4.
void round_group(const FloatRow& row, const Range& columns, int64_t group, int64_t token,
                 int64_t offset, const RoundedTokens& to) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t k = columns.begin; k < columns.end; k += kLanes) {
        largest = _mm512_max_epu32(largest, magnitude_bits(row.load16(k)));
    }
    const Scale8 scale = scale8(_mm512_reduce_max_epu32(largest));
    int8_t* codes = to.codes + token * to.code_bytes;
    int sum = 0;
    for (int64_t k = columns.begin; k < columns.end; k += kLanes) {
        const __m512i lanes = rounded_codes(row.load16(k), scale.inverse);
        const __mmask16 mask = tail_mask(round_up(columns.end - k, kUnitBytes));
        _mm_mask_storeu_epi8(codes + k, mask, _mm512_cvtepi32_epi8(lanes));
        sum += _mm512_reduce_add_epi32(lanes);
    }
    to.scales[token * to.groups + group] = scale.scale;
    to.offsets[token * to.groups + group] = -int(offset) * sum;
}

void round_tokens(const QuantizedLinearArgs& args, const Range& tokens) {
    const RoundedTokens to(args);
    const int64_t element = args.x_dtype == DType::kFloat32 ? 4 : 2;
    const int64_t group_columns = ceil_div(to.code_bytes, to.groups);
    for (int64_t token = tokens.begin; token < tokens.end; ++token) {
        const FloatRow row{static_cast<const char*>(args.x) + token * args.x_stride * element,
                           args.x_dtype, args.shape.k};
        for (int64_t g = 0; g < to.groups; ++g) {
            round_group(row, {g * group_columns, (g + 1) * group_columns}, g, token,
                        args.shape.offset(), to);
        }
    }
}

const uint8_t* strip_at(const QuantizedLinearArgs& args, int64_t index) {
    return static_cast<const uint8_t*>(args.weight) + index * args.shape.strip_bytes();
}

// Dots of a group in int32 to their share of the sum; the arithmetic of product8 and product4.
inline __m512 scaled_dots(const int32_t* dots, int32_t offset, __m512 scale, float x_scale,
                          __m512 sum, bool is_first) {
    const __m512i exact = _mm512_add_epi32(_mm512_load_si512(dots), _mm512_set1_epi32(offset));
    const __m512 value = _mm512_cvtepi32_ps(exact);
    const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
    return is_first ? _mm512_mul_ps(value, both) : _mm512_fmadd_ps(value, both, sum);
}

void run_int8(Tiles& tiles, const QuantizedLinearArgs& args, const Work& work) {
    const QuantizedShape& shape = args.shape;
    const RoundedTokens rounded(args);
    const uint8_t* strip = strip_at(args, work.pair * kBlockStrips);
    const Strips weight{reinterpret_cast<const char*>(strip) + shape.codes_at(0),
                        shape.strip_bytes(), kTileBytes, shape.units(),
                        strips_of(shape.n, work.pair)};
    Sums<int32_t> dots;
    Sums<float> sums;
    for (int64_t m = work.tokens.begin; m < work.tokens.end; m += kBlockTokens) {
        const Range tokens = tokens_of_block(work.tokens, m);
        const TokenRows x{reinterpret_cast<const char*>(rounded.codes) + m * rounded.code_bytes,
                          rounded.code_bytes, rounded.code_bytes, tokens.end - m};
        multiply<int8_t>(tiles, x, weight, dots);
        for (int64_t s = 0; s < weight.count; ++s) {
            const __m512 scale =
                load(reinterpret_cast<const float*>(strip + s * shape.strip_bytes()));
            for (int64_t i = 0; i < x.count; ++i) {
                const __m512 value =
                    scaled_dots(dots.at[i] + s * kLanes, rounded.offsets[m + i], scale,
                                rounded.scales[m + i], _mm512_setzero_ps(), true);
                _mm512_store_ps(sums.at[i] + s * kLanes, value);
            }
        }
        finish(args.output, tokens, work.pair, weight.count, sums);
    }
}

// A strip's codes one to a byte: [units][16 rows][4], as int8 stores them.
void unpack_strip(const QuantizedShape& shape, const uint8_t* strip, char* to) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t u = 0; u < shape.units(); u += 2) {
        const __m512i pair = _mm512_loadu_si512(strip + shape.codes_at(u));
        _mm512_store_si512(to + u * kTileBytes, _mm512_and_si512(pair, low));
        _mm512_store_si512(to + (u + 1) * kTileBytes,
                           _mm512_and_si512(_mm512_srli_epi16(pair, 4), low));
    }
}

// Adds one group of 32 columns of x, whose dots stand in the tiles.
void add_group(const QuantizedLinearArgs& args, const RoundedTokens& rounded, const Work& work,
               const Range& tokens, int64_t group, Sums<float>& sums) {
    const QuantizedShape& shape = args.shape;
    const int64_t strips = strips_of(shape.n, work.pair);
    Sums<int32_t> dots;
    store_tiles(tokens.end - tokens.begin, strips, dots);
    for (int64_t s = 0; s < strips; ++s) {
        const uint8_t* strip = strip_at(args, work.pair * kBlockStrips + s);
        const uint8_t* scales = strip + shape.scales_at(32 * group / shape.group);
        const __m512 scale = load(reinterpret_cast<const Bf16*>(scales));
        for (int64_t token = tokens.begin; token < tokens.end; ++token) {
            const int64_t i = token - tokens.begin, at = token * rounded.groups + group;
            float* sum = sums.at[i] + s * kLanes;
            _mm512_store_ps(sum, scaled_dots(dots.at[i] + s * kLanes, rounded.offsets[at], scale,
                                             rounded.scales[at], _mm512_load_ps(sum), false));
        }
    }
}

void run_int4(Tiles& tiles, const QuantizedLinearArgs& args, const Work& work, char* unpacked) {
    const QuantizedShape& shape = args.shape;
    const RoundedTokens rounded(args);
    constexpr int64_t group_units = 32 / kUnitBytes;
    Strips weight{unpacked, shape.units() * kTileBytes, kTileBytes, group_units,
                  strips_of(shape.n, work.pair)};
    for (int64_t s = 0; s < weight.count; ++s) {
        unpack_strip(shape, strip_at(args, work.pair * kBlockStrips + s),
                     unpacked + s * weight.stride);
    }
    publish(unpacked);
    for (int64_t m = work.tokens.begin; m < work.tokens.end; m += kBlockTokens) {
        const Range tokens = tokens_of_block(work.tokens, m);
        TokenRows x{reinterpret_cast<const char*>(rounded.codes) + m * rounded.code_bytes,
                    rounded.code_bytes, rounded.code_bytes, tokens.end - m};
        Sums<float> sums = {};
        tiles.configure(x.count, group_units);
        weight.first = unpacked;
        for (int64_t g = 0; g < rounded.groups; ++g) {
            zero_tiles(x.count, weight.count);
            add_step<int8_t>(x, weight);
            add_group(args, rounded, work, tokens, g, sums);
            x.first += 32;
            weight.first += group_units * kTileBytes;
        }
        finish(args.output, tokens, work.pair, weight.count, sums);
    }
}

void run_range(const QuantizedLinearArgs& args, const Partition& partition, const Range& range) {
    static thread_local Arena arena;
    const QuantizedShape& shape = args.shape;
    Tiles tiles;
    for (int64_t i = range.begin; i < range.end; ++i) {
        if (shape.is_int4()) {
            char* unpacked = arena.reserve(kBlockStrips * shape.units() * kTileBytes);
            run_int4(tiles, args, partition.at(i), unpacked);
        } else {
            run_int8(tiles, args, partition.at(i));
        }
    }
}

void run_on_tiles(const LinearArgs& args) {
    const Partition partition(args.m, args.shape.n, 2 * args.shape.k);
    for_each_range(args.num_threads, partition.count(), [&](const Range& range) {
        Tiles tiles;
        for (int64_t i = range.begin; i < range.end; ++i) run_bf16(tiles, args, partition.at(i));
    });
}

void run_on_tiles(const QuantizedLinearArgs& args) {
    for_each_range(args.num_threads, args.m,
                   [&](const Range& tokens) { round_tokens(args, tokens); });
    publish(args.scratch);
    const Partition partition(args.m, args.shape.n, args.shape.x_row_bytes());
    for_each_range(args.num_threads, partition.count(),
                   [&](const Range& range) { run_range(args, partition, range); });
}

}  // namespace

void linear_amx(const LinearArgs& args) {
    args.m > kFewTokens ? run_on_tiles(args) : linear(args);
}

void quantized_linear_amx(const QuantizedLinearArgs& args) {
    args.m > kFewTokens ? run_on_tiles(args) : quantized_linear(args);
}

}  // namespace hal::cpu
