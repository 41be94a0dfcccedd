// Tiles of 64 keys and values of a paged cache: where they lie, and packed for the micro-kernel.
#pragma once

#include "attention_work.h"

namespace hal::cpu {
namespace {

// Rows of one tile. A key that the item must not see, and that may not even be written, is a row
// of zeros instead, so that nothing that reads a tile asks again.
template <class T>
struct KeyTile {
    const T* keys[kTileKeys];
    const T* values[kTileKeys];
};

// The tile at `begin`, of which `visible` may be read.
template <class T>
void find_tile(const AttentionArgs& args, const Item& item, int64_t begin, Range visible,
               const T* zeros, KeyTile<T>& tile) {
    const KvShape& shape = args.kv_shape;
    const int32_t* blocks = args.block_table + item.sequence.index * args.block_table_stride;
    const int64_t end = visible.end < begin + kTileKeys ? visible.end : begin + kTileKeys;
    int64_t at = visible.begin > begin ? visible.begin : begin;
    for (int64_t i = 0; i < at - begin; ++i) tile.keys[i] = tile.values[i] = zeros;
    while (at < end) {
        const int64_t offset = at % shape.block_size;
        const int64_t index = shape.index(blocks[at / shape.block_size], item.kv_head, offset);
        const T* key = static_cast<const T*>(args.kv) + index;
        const int64_t block_end = at - offset + shape.block_size;
        const int64_t stop = block_end < end ? block_end : end;
        for (; at < stop; ++at, key += shape.head_dim) {
            tile.keys[at - begin] = key;
            tile.values[at - begin] = key + shape.plane();
        }
    }
    for (int64_t i = at - begin; i < kTileKeys; ++i) tile.keys[i] = tile.values[i] = zeros;
}

// Fetches the rows of the tile that comes next, line by line in the order of their addresses, while
// the current one is worked on: blocks are too short and too scattered for the hardware to guess
// them. Into the second level of cache, because the first has too few misses under way to reach the
// memory's bandwidth, and a line at a time, because a burst stalls behind them, too.
template <class T>
class Fetcher {
  public:
    Fetcher(const T* const* rows, int64_t dim) : rows_(rows), dim_(dim) {}

    void fetch_line() {
        _mm_prefetch(reinterpret_cast<const char*>(*rows_ + at_), _MM_HINT_T1);
        at_ += 64 / sizeof(T);
        if (at_ < dim_) return;
        at_ = 0;
        ++rows_;
    }

  private:
    const T* const* rows_;
    int64_t dim_;
    int64_t at_ = 0;
};

// 16 keys' elements of 16 steps from `at`, transposed: rows[i] holds step i of each key.
template <class T>
inline void load_steps(const T* const* keys, int64_t at, __mmask16 mask, __m512i (&rows)[16]) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_maskz_loadu_epi32(mask, keys[i] + at);
    transpose16(rows);
}

// K as [head_dim / step][width][step].
template <class T>
void pack_keys(const KeyTile<T>& tile, const KeyTile<T>& next, int64_t dim, int64_t width,
               T* packed) {
    constexpr int64_t step = 4 / sizeof(T);
    const int64_t units = dim / step;
    int* out = reinterpret_cast<int*>(packed);
    Fetcher<T> fetcher(next.keys, dim);
    for (int64_t first = 0; first < width; first += kLanes) {
        for (int64_t u = 0; u < units; u += kLanes) {
            __m512i rows[16];
            load_steps(tile.keys + first, u * step, tail_mask(units - u), rows);
            const int64_t count = units - u < kLanes ? units - u : kLanes;
#pragma GCC unroll 16
            for (int64_t i = 0; i < 16; ++i) {
                if (i == count) break;
                _mm512_storeu_si512(out + (u + i) * width + first, rows[i]);
                fetcher.fetch_line();
            }
        }
    }
}

// 16 * NV columns from `at` of one step of keys: two interleaved rows of bfloat16, one row of
// float32. `left` columns exist; the others are zero.
template <int NV>
inline void load_values(const Bf16* const* values, int64_t at, int64_t left, __m512i (&out)[NV]) {
    static_assert(NV <= 2);
    const __mmask32 mask = left >= 32 ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
    const __m512i even = _mm512_maskz_loadu_epi16(mask, values[0] + at);
    const __m512i odd = _mm512_maskz_loadu_epi16(mask, values[1] + at);
    // Words 0, 32, 1, 33, ...: bit 5 selects `odd`.
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i first = (__m512i)((__v16si)lane * 0x10001 + (32 << 16));
    const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(kLanes));
    out[0] = _mm512_permutex2var_epi16(even, first, odd);
    if constexpr (NV == 2) out[1] = _mm512_permutex2var_epi16(even, second, odd);
}
template <int NV>
inline void load_values(const float* const* values, int64_t at, int64_t left,
                        __m512i (&out)[NV]) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
        const __mmask16 mask = left > v * kLanes ? tail_mask(left - v * kLanes) : __mmask16(0);
        out[v] = _mm512_maskz_loadu_epi32(mask, values[0] + at + v * kLanes);
    }
}

// V by panels of 64 columns, the last as wide as it must be: [count / step][columns][step].
template <class T>
void pack_values(const KeyTile<T>& tile, const KeyTile<T>& next, int64_t dim, int64_t count,
                 T* packed) {
    constexpr int64_t step = 4 / sizeof(T);
    int* out = reinterpret_cast<int*>(packed);
    Fetcher<T> fetcher(next.values, dim);
    for (int64_t first = 0; first < dim; first += kPanelRows) {
        const int64_t end = dim - first < kPanelRows ? dim : first + kPanelRows;
        for (int64_t key = 0; key < count; key += step) {
            for (int64_t c = first; c < end; c += 2 * kLanes) {
                __m512i pairs[2];
                load_values<2>(tile.values + key, c, dim - c, pairs);
                _mm512_storeu_si512(out, pairs[0]);
                fetcher.fetch_line();
                out += kLanes;
                if (end - c <= kLanes) continue;
                _mm512_storeu_si512(out, pairs[1]);
                fetcher.fetch_line();
                out += kLanes;
            }
        }
    }
}

}  // namespace
}  // namespace hal::cpu
