// Tiles of 64 keys of a paged cache: the four strips that they are.
#pragma once

#include "attention_work.h"

namespace hal::cpu {
namespace {

constexpr int64_t kTileStrips = kTileKeys / kLanes;

struct KeyTile {
    const char* keys[kTileStrips];
    const char* values[kTileStrips];
};

inline Range visible_in(int64_t strip_begin, Range visible) {
    const int64_t begin = visible.begin - strip_begin, end = visible.end - strip_begin;
    return {begin > 0 ? begin : 0, end < kLanes ? end : kLanes};
}

// The tile at `begin`. A strip without a key in `visible` may not even exist, so it is zeros.
inline void find_tile(const AttentionArgs& args, const Item& item, int64_t begin, Range visible,
                      const char* zeros, KeyTile& tile) {
    const KvShape& shape = args.kv_shape;
    const int32_t* blocks = args.block_table + item.sequence.index * args.block_table_stride;
    for (int64_t i = 0; i < kTileStrips; ++i) {
        const int64_t at = begin + i * kLanes;
        const Range seen = visible_in(at, visible);
        const char* strip = zeros;
        if (seen.begin < seen.end) {
            const int64_t block = blocks[at / shape.block_size];
            strip = static_cast<const char*>(args.kv) +
                    shape.strip(block, item.kv_head, at % shape.block_size);
        }
        tile.keys[i] = strip;
        tile.values[i] = strip + shape.side_bytes();
    }
}

inline void first_tile(const AttentionArgs& args, const Item& item, const char* zeros,
                       KeyTile& tile) {
    const int64_t begin = item.keys.begin / kTileKeys * kTileKeys;
    find_tile(args, item, begin, item.keys, zeros, tile);
}

// Which bits of a dword of V belong to keys in `seen`, for the step keys from `key`.
template <class T>
inline int seen_bits(Range seen, int64_t key) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < int64_t(4 / sizeof(T)); ++i) {
        const uint32_t element = ~uint32_t(0) >> (32 - 8 * sizeof(T));
        const bool is_seen = key + i >= seen.begin && key + i < seen.end;
        if (is_seen) bits |= element << (8 * sizeof(T) * unsigned(i));
    }
    return int(bits);
}

// Replaces the V of strips that are visible in part, of which a tile has two at most, by copies
// with zeros for the rest: that may hold NaN, whose product with a weight of zero is NaN. K needs
// none, because a key's score stays in its lane.
template <class T>
void hide_values(const AttentionArgs& args, const Item& item, int64_t begin, char* copies,
                 KeyTile& tile) {
    const int64_t dim = args.kv_shape.head_dim;
    constexpr int64_t step = 4 / sizeof(T);
    for (int64_t i = 0; i < kTileStrips; ++i) {
        const Range seen = visible_in(begin + i * kLanes, item.keys);
        if (seen.begin >= seen.end || seen.end - seen.begin == kLanes) continue;
        const char* from = tile.values[i];
        tile.values[i] = copies;
        for (int64_t key = 0; key < kLanes; key += step, from += 4 * dim, copies += 4 * dim) {
            const __m512i bits = _mm512_set1_epi32(seen_bits<T>(seen, key));
            for (int64_t c = 0; c < dim; c += kLanes) {
                const __mmask16 mask = tail_mask(dim - c);
                const __m512i row = _mm512_maskz_loadu_epi32(mask, from + 4 * c);
                _mm512_mask_storeu_epi32(copies + 4 * c, mask, _mm512_and_si512(row, bits));
            }
        }
    }
}

}  // namespace
}  // namespace hal::cpu
