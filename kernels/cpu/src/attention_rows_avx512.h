// The rows of one item: queries as the products take them, and softmax weights from their scores.
#pragma once

#include "attention_products_avx512.h"
#include "attention_softmax_avx512.h"
#include "quantize_avx512.h"

namespace hal::cpu {
namespace {

// Scratch of up to kItemRows rows, cut from a thread's arena. Of codes, q and p hold two rows of
// bytes for each row, and scores two of whole numbers.
struct Rows {
    char* q;          // [rows * parts][dim] elements
    int* start;       // [rows * parts]: minus the offset of K's codes times the sum of q
    float* q_scales;  // [rows]
    char* scores;     // [rows * parts][64] dwords
    char* p;          // [rows * parts][64] elements: softmax weights
    float* p_scales;  // [rows], of one tile
    Sums split;
    Sums total;
};

template <class T>
inline void load_query(const AttentionArgs& args, const T* from, const Rows& to, int64_t row) {
    const int64_t bytes = args.kv_shape.head_dim * int64_t(sizeof(T));
    __builtin_memcpy(to.q + row * bytes, from, size_t(bytes));
    to.start[row] = 0;
}

// q = scale * (256 * hi + lo), each a signed byte.
inline void load_query(const AttentionArgs& args, const Bf16* from, const Rows& to, int64_t row,
                       const Code*) {
    constexpr float most = 127.0f * 256.0f;
    const int64_t dim = args.kv_shape.head_dim;
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < dim; i += kLanes) {
        largest = _mm512_max_epu32(largest, magnitude_bits(load(from + i, tail_mask(dim - i))));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(largest);
    const bool is_zero = bits < kInfinity && as_float(bits) <= kSmallest;
    const float inverse = is_zero || bits >= kInfinity ? 0.0f : most / as_float(bits);
    char* hi_row = to.q + 2 * row * dim;
    __m512i hi_sum = _mm512_setzero_si512(), lo_sum = hi_sum;
    for (int64_t i = 0; i < dim; i += kLanes) {
        const __mmask16 mask = tail_mask(dim - i);
        const __m512i code = rounded_codes(load(from + i, mask), inverse);
        const __m512i hi =
            _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
        const __m512i lo = _mm512_sub_epi32(code, _mm512_slli_epi32(hi, 8));
        _mm_mask_storeu_epi8(hi_row + i, mask, _mm512_cvtepi32_epi8(hi));
        _mm_mask_storeu_epi8(hi_row + dim + i, mask, _mm512_cvtepi32_epi8(lo));
        hi_sum = _mm512_add_epi32(hi_sum, hi);
        lo_sum = _mm512_add_epi32(lo_sum, lo);
    }
    to.start[2 * row] = -128 * _mm512_reduce_add_epi32(hi_sum);
    to.start[2 * row + 1] = -128 * _mm512_reduce_add_epi32(lo_sum);
    to.q_scales[row] = bits >= kInfinity ? __builtin_nanf("") : as_float(bits) / most;
}

// q . K of 16 keys of the tile.
template <class T>
inline __m512 products_of(const AttentionArgs& args, const KeyTile& tile, const Rows& rows,
                          int64_t row, int64_t strip) {
    const float* scores = reinterpret_cast<const float*>(rows.scores);
    if constexpr (kParts<T> == 1) return load(scores + row * kTileKeys + strip * kLanes);
    const char* hi = rows.scores + 4 * (2 * row * kTileKeys + strip * kLanes);
    const __m512 hi_part = _mm512_cvtepi32_ps(_mm512_loadu_si512(hi));
    const __m512 lo_part = _mm512_cvtepi32_ps(_mm512_loadu_si512(hi + 4 * kTileKeys));
    const char* scales = tile.keys[strip] + 2 * args.kv_shape.side_bytes();
    const __m512 scale = _mm512_mul_ps(load(reinterpret_cast<const Bf16*>(scales)),
                                       _mm512_set1_ps(rows.q_scales[row]));
    return _mm512_mul_ps(_mm512_fmadd_ps(hi_part, _mm512_set1_ps(256.0f), lo_part), scale);
}

// Weights of bfloat16, whose unit is 4e-3, and 16 bits need no better.
template <class T>
inline __m512 weight_of(__m512 x) {
    return exp2<sizeof(T) == 4 ? 6 : 4>(x);
}

// Stores a row's weights of a tile for the product with V; returns their sum as that will see them.
template <class T, int V>
inline __m512 store_weights(const Rows& rows, int64_t row, const __m512 (&weights)[V]) {
    T* p = reinterpret_cast<T*>(rows.p) + row * kTileKeys;
    __m512 sum = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        store(p + v * kLanes, weights[v], __mmask16(0xffff));
        sum = _mm512_add_ps(sum, rounded(p, weights[v]));
    }
    return sum;
}

// Weight times the scale of V's codes = scale * (256 * hi + lo), each an unsigned byte. Where a key
// is not seen, its scale may be anything.
template <int V>
inline void round_weights(const AttentionArgs& args, const KeyTile& tile, const Rows& rows,
                          int64_t row, uint64_t seen, const __m512 (&weights)[V]) {
    const int64_t scales_at = 2 * args.kv_shape.side_bytes() + 2 * kLanes;
    __m512 scaled[V];
    __m512i largest = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const Bf16* scales = reinterpret_cast<const Bf16*>(tile.keys[v] + scales_at);
        const __m512 kept = load(scales, __mmask16(seen >> (v * kLanes)));
        scaled[v] = _mm512_mul_ps(weights[v], kept);
        largest = _mm512_max_epu32(largest, magnitude_bits(scaled[v]));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(largest);
    const bool is_zero = bits < kInfinity && as_float(bits) <= kSmallest;
    const float inverse = is_zero || bits >= kInfinity ? 0.0f : 65535.0f / as_float(bits);
    rows.p_scales[row] = bits >= kInfinity ? __builtin_nanf("") : as_float(bits) / 65535.0f;
    char* hi = rows.p + 2 * row * kTileKeys;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const __m512i code = _mm512_min_epi32(rounded_codes(scaled[v], inverse),
                                              _mm512_set1_epi32(65535));
        const __m128i high = _mm512_cvtepi32_epi8(_mm512_srli_epi32(code, 8));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(hi + v * kLanes), high);
        const __m128i low = _mm512_cvtepi32_epi8(code);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(hi + kTileKeys + v * kLanes), low);
    }
}

// Scores -> softmax weights of one row, 16 * V keys, and its running state.
template <class T, int V>
inline void weigh_row(const AttentionArgs& args, const Scale& scale, const KeyTile& tile,
                      const Rows& rows, int64_t row, uint64_t seen) {
    const Sums& sums = rows.split;
    __m512 scores[V];
    __m512 highest = _mm512_set1_ps(sums.maximum[row * sums.stride]);
    const __m512 before = highest;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const __mmask16 mask = __mmask16(seen >> (v * kLanes));
        scores[v] = scale(products_of<T>(args, tile, rows, row, v));
        highest = _mm512_mask_max_ps(highest, mask, highest, scores[v]);
    }
    if (_mm512_cmp_ps_mask(highest, before, _CMP_GT_OQ) != 0) raise_maximum(sums, row, highest);
    const __m512 maximum = _mm512_set1_ps(sums.maximum[row * sums.stride]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const __mmask16 mask = __mmask16(seen >> (v * kLanes));
        scores[v] = _mm512_maskz_mov_ps(mask, weight_of<T>(_mm512_sub_ps(scores[v], maximum)));
    }
    float* total = sums.weights + row * sums.stride;
    if constexpr (kParts<T> == 1) {
        _mm512_storeu_ps(total, _mm512_add_ps(load(total), store_weights<T>(rows, row, scores)));
    } else {
        __m512 sum = load(total);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum = _mm512_add_ps(sum, scores[v]);
        _mm512_storeu_ps(total, sum);
        round_weights(args, tile, rows, row, seen, scores);
    }
}

inline uint64_t low_bits(int64_t count) {
    if (count <= 0) return 0;
    return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
}

template <class T, int V>
[[gnu::noinline]] void weigh_rows(const AttentionArgs& args, const Item& item, const Rows& rows,
                                  const KeyTile& tile, int64_t begin, Range which) {
    const Scale scale(args);
    for (int64_t row = which.begin; row < which.end; ++row) {
        const Range seen = visible_keys(args, item.sequence, item.rows.begin + row);
        const uint64_t bits = low_bits(seen.end - begin) & ~low_bits(seen.begin - begin);
        weigh_row<T, V>(args, scale, tile, rows, row, bits);
    }
}

// Of the tile at `begin`, as far as its first `strips`.
template <class T>
void weigh(const AttentionArgs& args, const Item& item, const Rows& rows, const KeyTile& tile,
           int64_t begin, int64_t strips, Range which) {
    if (strips == 4) weigh_rows<T, 4>(args, item, rows, tile, begin, which);
    if (strips == 3) weigh_rows<T, 3>(args, item, rows, tile, begin, which);
    if (strips == 2) weigh_rows<T, 2>(args, item, rows, tile, begin, which);
    if (strips == 1) weigh_rows<T, 1>(args, item, rows, tile, begin, which);
}

}  // namespace
}  // namespace hal::cpu
