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
    float* k_scales;  // [64] of the tile, and of its values
    float* v_scales;
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

// The scales of a tile's keys and values, in float32. Where a key is not in the item's sight they
// may be anything.
inline void load_scales(const AttentionArgs& args, const KeyTile& tile, const KeyTile& next,
                        int64_t strips, const Rows& to) {
    const int64_t at = 2 * args.kv_shape.side_bytes();
    for (int64_t i = 0; i < strips; ++i) {
        const char* scales = tile.keys[i] + at;
        _mm_prefetch(next.keys[i] + at, _MM_HINT_T1);
        const Bf16* from = reinterpret_cast<const Bf16*>(scales);
        _mm512_storeu_ps(to.k_scales + i * kLanes, load(from));
        _mm512_storeu_ps(to.v_scales + i * kLanes, load(from + kLanes));
    }
}

// q . K of 16 keys times `product`.
template <class T>
inline __m512 scaled_products(const Rows& rows, int64_t row, int64_t strip, float product) {
    const char* scores = rows.scores + 4 * (kParts<T> * row * kTileKeys + strip * kLanes);
    if constexpr (kParts<T> == 1) {
        return _mm512_mul_ps(_mm512_loadu_ps(scores), _mm512_set1_ps(product));
    } else {
        const __m512 hi = _mm512_cvtepi32_ps(_mm512_loadu_si512(scores));
        const __m512 lo = _mm512_cvtepi32_ps(_mm512_loadu_si512(scores + 4 * kTileKeys));
        const __m512 dot = _mm512_fmadd_ps(hi, _mm512_set1_ps(256.0f), lo);
        const __m512 scale = _mm512_set1_ps(rows.q_scales[row] * product);
        return _mm512_mul_ps(dot, _mm512_mul_ps(load(rows.k_scales + strip * kLanes), scale));
    }
}

// Weights of bfloat16, whose unit is 4e-3, and those that multiply codes need no better.
template <class T>
inline __m512 weight_of(__m512 x) {
    return sizeof(T) == 4 ? exp2(x) : exp2_short(x);
}

// Stores a row's weights of a tile for the product with V, and adds them to `sum` as that will see
// them.
template <int V>
inline __m512 store_weights(float* p, __m512 sum, const __m512 (&weights)[V]) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        _mm512_storeu_ps(p + v * kLanes, weights[v]);
        sum = _mm512_add_ps(sum, weights[v]);
    }
    return sum;
}
template <int V>
inline __m512 store_weights(Bf16* p, __m512 sum, const __m512 (&weights)[V]) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
#pragma GCC unroll 2
    for (int v = 0; v < V; v += 2) {
        const __m512 second = v + 1 < V ? weights[v + 1] : _mm512_setzero_ps();
        const __m512bh pairs = _mm512_cvtne2ps_pbh(second, weights[v]);
        _mm512_storeu_si512(p + v * kLanes, (__m512i)pairs);
        sum = _mm512_dpbf16_ps(sum, pairs, (__m512bh)ones);
    }
    return sum;
}

// 64 whole numbers of 16 bits as a row of their upper bytes and one of their lower.
inline void store_bytes(char* to, const __m512i (&codes)[kTileStrips]) {
    // Packing takes four numbers of each operand in turn, so dwords come out transposed.
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i first = _mm512_packus_epi32(codes[0], codes[1]);
    const __m512i second = _mm512_packus_epi32(codes[2], codes[3]);
    const __m512i low = _mm512_set1_epi16(0xff);
    const __m512i hi =
        _mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8));
    const __m512i lo =
        _mm512_packus_epi16(_mm512_and_si512(first, low), _mm512_and_si512(second, low));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, hi));
    _mm512_storeu_si512(to + kTileKeys, _mm512_permutexvar_epi32(order, lo));
}

// Weight times the scale of V's codes = scale * (256 * hi + lo), each an unsigned byte. If one is
// NaN the scale is, and codes mean nothing.
template <int V>
inline void round_weights(const Rows& rows, int64_t row, uint64_t seen,
                          const __m512 (&weights)[V]) {
    constexpr float most = 65535.0f;
    __m512 scaled[V];
    __m512i largest = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        scaled[v] = _mm512_maskz_mul_ps(__mmask16(seen >> (v * kLanes)), weights[v],
                                        load(rows.v_scales + v * kLanes));
        largest = _mm512_max_epu32(largest, magnitude_bits(scaled[v]));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(largest);
    const bool is_zero = as_float(bits) <= kSmallest;
    const __m512 inverse = _mm512_set1_ps(is_zero ? 0.0f : most / as_float(bits));
    rows.p_scales[row] = bits >= kInfinity ? __builtin_nanf("") : as_float(bits) * (1.0f / most);
    __m512i codes[kTileStrips] = {};
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) codes[v] = _mm512_cvtps_epi32(_mm512_mul_ps(scaled[v], inverse));
    store_bytes(rows.p + 2 * row * kTileKeys, codes);
}

// Scores -> softmax weights of one row, 16 * V keys, and its running state.
template <class T, int V>
inline void weigh_row(const Scale& scale, const Rows& rows, int64_t row, uint64_t seen) {
    const Sums& sums = rows.split;
    __m512 scores[V];
    __m512 highest = _mm512_set1_ps(sums.maximum[row * sums.stride]);
    const __m512 before = highest;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const __mmask16 mask = __mmask16(seen >> (v * kLanes));
        scores[v] = scale.score(scaled_products<T>(rows, row, v, scale.product));
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
    __m512 sum = load(total);
    if constexpr (kParts<T> == 1) {
        sum = store_weights(reinterpret_cast<T*>(rows.p) + row * kTileKeys, sum, scores);
    } else {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum = _mm512_add_ps(sum, scores[v]);
        round_weights(rows, row, seen, scores);
    }
    _mm512_storeu_ps(total, sum);
}

inline uint64_t low_bits(int64_t count) {
    if (count <= 0) return 0;
    return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
}

template <class T, int V>
[[gnu::noinline]] void weigh_rows(const AttentionArgs& args, const Item& item, const Rows& rows,
                                  int64_t begin, Range which) {
    const Scale scale(args);
    for (int64_t row = which.begin; row < which.end; ++row) {
        const Range seen = visible_keys(args, item.sequence, item.rows.begin + row);
        const uint64_t bits = low_bits(seen.end - begin) & ~low_bits(seen.begin - begin);
        weigh_row<T, V>(scale, rows, row, bits);
    }
}

// Of the tile at `begin`, as far as its first `strips`.
template <class T>
void weigh(const AttentionArgs& args, const Item& item, const Rows& rows, const KeyTile& tile,
           const KeyTile& next, int64_t begin, int64_t strips, Range which) {
    if constexpr (kParts<T> == 2) load_scales(args, tile, next, strips, rows);
    if (strips == 4) weigh_rows<T, 4>(args, item, rows, begin, which);
    if (strips == 3) weigh_rows<T, 3>(args, item, rows, begin, which);
    if (strips == 2) weigh_rows<T, 2>(args, item, rows, begin, which);
    if (strips == 1) weigh_rows<T, 1>(args, item, rows, begin, which);
}

}  // namespace
}  // namespace hal::cpu
