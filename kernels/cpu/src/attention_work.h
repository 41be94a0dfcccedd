// How attention is cut into items, and which thread runs which. Bits of the result depend on none
// of it: keys are always summed in tiles of 64 inside splits of 512 at fixed positions, and splits
// are merged in order, so a token's output is the same in decode, chunk, prefill and any batch.
#pragma once

#include "simd_avx512.h"

namespace hal::cpu {
namespace {

constexpr int64_t kTileKeys = 64;
constexpr int64_t kSplitKeys = 512;
// Query rows (token, head of the group) of one item: 16 micro-kernel tiles of 6.
constexpr int64_t kItemRows = 96;
// Reading one key costs about as much as using it for this many rows.
constexpr int64_t kKeyCost = 4;

struct Sequence {
    int64_t index;
    int64_t num_rows;  // new tokens x heads per KV head
    int64_t first_token;
    int64_t first_position;
};

struct Item {
    Sequence sequence;
    int64_t kv_head;
    Range rows;
    Range keys;       // visible to any of the rows
    int64_t partial;  // where the partial sums go, or -1 to write the output
};

inline int64_t group_size(const AttentionArgs& args) {
    return args.num_heads / args.kv_shape.num_kv_heads;
}

// Floats of one row's partial sums: running maximum, sums of weights in 16 lanes, weighted V.
inline int64_t partial_row(const AttentionArgs& args) {
    return round_up(args.kv_shape.head_dim, kLanes) + 2 * kLanes;
}

inline Sequence sequence_at(const AttentionArgs& args, int64_t index) {
    const int64_t first = args.cu_seqlens_q[index];
    const int64_t tokens = args.cu_seqlens_q[index + 1] - first;
    return {index, tokens * group_size(args), first, args.seq_lens[index] - tokens};
}

// Keys that row can see: its own position and before, the window's worth of them if there is one.
inline Range visible_keys(const AttentionArgs& args, const Sequence& sequence, int64_t row) {
    const int64_t position = sequence.first_position + row / group_size(args);
    const int64_t begin = args.window > 0 ? position + 1 - args.window : 0;
    return {begin > 0 ? begin : 0, position + 1};
}

inline Range item_keys(const AttentionArgs& args, const Sequence& sequence, Range rows) {
    return {visible_keys(args, sequence, rows.begin).begin,
            visible_keys(args, sequence, rows.end - 1).end};
}

// Rows of the item, counted within it, that see the key at `position` or one after it.
inline Range seeing_rows(const AttentionArgs& args, const Item& item, int64_t position) {
    const int64_t tokens = position - item.sequence.first_position;
    const int64_t before = tokens * group_size(args) - item.rows.begin;
    return {before > 0 ? before : 0, item.rows.end - item.rows.begin};
}

inline int64_t cost(const Item& item) {
    return (item.keys.end - item.keys.begin) * (item.rows.end - item.rows.begin + kKeyCost);
}

// Decode: few rows, so the splits of the keys are the parallel items. False if one split has all.
inline bool is_split(const AttentionArgs& args, const Sequence& sequence) {
    if (sequence.num_rows == 0 || sequence.num_rows > kItemRows) return false;
    const Range keys = item_keys(args, sequence, {0, sequence.num_rows});
    return keys.begin / kSplitKeys != (keys.end - 1) / kSplitKeys;
}

template <class Visit>
void visit_splits(const AttentionArgs& args, const Sequence& sequence, int64_t* partial,
                  const Visit& visit) {
    const Range rows{0, sequence.num_rows};
    const Range keys = item_keys(args, sequence, rows);
    for (int64_t head = 0; head < args.kv_shape.num_kv_heads; ++head) {
        for (int64_t begin = keys.begin; begin < keys.end;) {
            const int64_t next = (begin / kSplitKeys + 1) * kSplitKeys;
            const int64_t end = next < keys.end ? next : keys.end;
            visit(Item{sequence, head, rows, {begin, end}, *partial});
            *partial += sequence.num_rows * partial_row(args);
            begin = end;
        }
    }
}

template <class Visit>
void visit_row_tiles(const AttentionArgs& args, const Sequence& sequence, const Visit& visit) {
    const int64_t tiles = ceil_div(sequence.num_rows, kItemRows);
    for (int64_t head = 0; head < args.kv_shape.num_kv_heads; ++head) {
        for (int64_t i = 0; i < tiles; ++i) {
            const Range rows = share(sequence.num_rows, i, tiles);
            visit(Item{sequence, head, rows, item_keys(args, sequence, rows), -1});
        }
    }
}

// Calls visit(item) for every item in a fixed order; returns the floats all partials take.
template <class Visit>
int64_t visit_items(const AttentionArgs& args, const Visit& visit) {
    int64_t partial = 0;
    for (int64_t s = 0; s < args.num_seqs; ++s) {
        const Sequence sequence = sequence_at(args, s);
        if (is_split(args, sequence)) {
            visit_splits(args, sequence, &partial, visit);
        } else {
            visit_row_tiles(args, sequence, visit);
        }
    }
    return partial;
}

}  // namespace
}  // namespace hal::cpu
