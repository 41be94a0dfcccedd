// Causal attention over the paged cache, for decodes, chunks and prefills alike. An item is up to 64
// query rows (a new token, a head of the group) of one KV head; lanes are rows, so that scores of a
// key need no sum across lanes and keys and values are read where they lie.
//
// Keys are summed in order in tiles of 64 inside splits of 512 at fixed positions, and splits are
// merged in order, whatever the batch, the chunk and the number of threads, so none of them changes
// a bit. Where there are few items for the threads, each split of a decode is an item of its own.
#pragma once

#include "arena.h"
#include "level.h"
#include "portable_tile.h"

namespace hal::cpu {
namespace {

constexpr int64_t kTileKeys = 64;
constexpr int64_t kSplitKeys = 512;
constexpr int64_t kItemRows = kPanelRows;

// Finite, so that differences of two are: of a key that a row does not see, and of no key yet.
constexpr float kUnseen = -3e38f;
constexpr float kNoMaximum = -1e30f;

struct AttentionItem {
    int64_t sequence;
    int64_t kv_head;
    Range rows;  // of the sequence: new token * group + head of the group
    Range keys;  // seen by any of the rows
};

// Of one split, or of all so far, of each row: sums of weights and of weighted values, relative to
// e^maximum.
struct PartialSums {
    float* maximum;
    float* sum;
    float* output;  // [rows][head_dim]

    static int64_t num_floats(int64_t rows, int64_t head_dim) { return rows * (head_dim + 2); }
    PartialSums(float* memory, int64_t rows)
        : maximum(memory), sum(memory + rows), output(memory + 2 * rows) {}
};

// Of one item. Panels are [64 rows][64 columns].
struct AttentionScratch {
    float* queries;  // [head_dim][width]
    float* weights;  // [kTileKeys][kPanelRows]: scores, then weights
    float* output;   // a panel for every 64 elements of a head
    float* widened;  // [kTileKeys][head_dim]
    float* maximum;  // [kPanelRows], as the following
    float* sum;
    float* correction;
    int32_t* positions;
    float* total;  // PartialSums

    static int64_t num_floats(int64_t head_dim) {
        return (2 * head_dim + round_up(head_dim, kPanelRows) + kTileKeys + 4) * kPanelRows +
               PartialSums::num_floats(kItemRows, head_dim);
    }
    AttentionScratch(char* memory, int64_t head_dim) {
        queries = reinterpret_cast<float*>(memory);
        weights = queries + head_dim * kPanelRows;
        output = weights + kTileKeys * kPanelRows;
        widened = output + round_up(head_dim, kPanelRows) * kPanelRows;
        maximum = widened + head_dim * kTileKeys;
        sum = maximum + kPanelRows;
        correction = sum + kPanelRows;
        positions = reinterpret_cast<int32_t*>(correction + kPanelRows);
        total = correction + 2 * kPanelRows;
    }
};

template <class T>
class ItemAttention {
  public:
    ItemAttention(const AttentionArgs& args, const AttentionItem& item, AttentionScratch scratch)
        : args_(args), item_(item), scratch_(scratch), head_dim_(args.kv_shape.head_dim),
          rows_(item.rows.end - item.rows.begin), width_(round_up(rows_, kLanes)),
          total_(scratch.total, rows_) {}

    // Writes the output.
    void run() {
        load_queries();
        clear(total_);
        for (int64_t key = item_.keys.begin; key < item_.keys.end;) {
            const int64_t end = key / kSplitKeys * kSplitKeys + kSplitKeys;
            const Range split{key, end < item_.keys.end ? end : item_.keys.end};
            run_split(split);
            add_split(total_);
            key = split.end;
        }
        store_output();
    }

    // Of an item with the keys of one split; writes its sums, for add_partial.
    void run_partial(float* memory) {
        const PartialSums to(memory, rows_);
        load_queries();
        run_split(item_.keys);
        clear(to);
        add_split(to);
    }

    // Writes the output that the sums of all splits make.
    void merge(const float* memory, int64_t splits) {
        clear(total_);
        for (int64_t i = 0; i < splits; ++i) {
            const int64_t size = PartialSums::num_floats(rows_, head_dim_);
            const PartialSums from(const_cast<float*>(memory) + i * size, rows_);
            for (int64_t row = 0; row < rows_; ++row) {
                const float* output = from.output + row * head_dim_;
                add(total_, row, from.maximum[row], from.sum[row],
                    [&](int64_t k) { return load(output + k); });
            }
        }
        store_output();
    }

  private:
    void clear(const PartialSums& sums) const {
        for (int64_t row = 0; row < rows_; ++row) {
            sums.maximum[row] = kNoMaximum;
            sums.sum[row] = 0.0f;
        }
        for (int64_t i = 0; i < rows_ * head_dim_; i += kWidth) store(sums.output + i, zeros());
    }
    // Adds what output(k) weighs relative to e^maximum. To nothing, it gives exactly that; of no key
    // that the row sees, it adds exactly nothing.
    template <class Output>
    void add(const PartialSums& to, int64_t row, float maximum, float sum, const Output& output) const {
        const float before = to.maximum[row], after = maximum > before ? maximum : before;
        const Floats kept = exp(splat(before - after)), added = exp(splat(maximum - after));
        alignas(64) float sums[kWidth];
        store(sums, fma(splat(sum), added, splat(to.sum[row]) * kept));
        to.maximum[row] = after;
        to.sum[row] = sums[0];
        float* value = to.output + row * head_dim_;
        for (int64_t k = 0; k < head_dim_; k += kWidth) {
            store(value + k, fma(output(k), added, load(value + k) * kept));
        }
    }
    void add_split(const PartialSums& to) const {
        for (int64_t row = 0; row < rows_; ++row) {
            add(to, row, scratch_.maximum[row], scratch_.sum[row],
                [&](int64_t k) { return load(output_at(row, k)); });
        }
    }

    void run_split(const Range& split) {
        clear_split();
        for (int64_t key = split.begin; key < split.end;) {
            const int64_t end = key / kTileKeys * kTileKeys + kTileKeys;
            const Range tile{key, end < split.end ? end : split.end};
            const auto score_part = [&](int64_t first, int64_t count, const float* keys) {
                score(tile, first, count, keys);
            };
            const auto add_part = [&](int64_t first, int64_t count, const float* values) {
                add_values(tile, first, count, values);
            };
            visit_blocks(tile, 0, score_part);
            weigh(tile);
            visit_blocks(tile, plane(), add_part);
            key = tile.end;
        }
    }

    // Elements of a block's keys, and of its values.
    int64_t plane() const { return args_.kv_shape.num_kv_heads * args_.kv_shape.block_size * head_dim_; }
    int64_t group() const { return args_.num_heads / args_.kv_shape.num_kv_heads; }
    int64_t token(int64_t row) const { return (item_.rows.begin + row) / group(); }
    // Of the row's head among the elements of a token.
    int64_t column(int64_t row) const {
        const int64_t head = item_.kv_head * group() + (item_.rows.begin + row) % group();
        return head * head_dim_;
    }

    void load_queries() {
        const int64_t first_token = args_.cu_seqlens_q[item_.sequence];
        const int64_t num_tokens = args_.cu_seqlens_q[item_.sequence + 1] - first_token;
        const int64_t before = args_.seq_lens[item_.sequence] - num_tokens;
        for (int64_t row = 0; row < width_; ++row) {
            // Rows that pad the last register repeat a real one.
            const int64_t from = row < rows_ ? row : rows_ - 1;
            const T* q = static_cast<const T*>(args_.q) +
                         (first_token + token(from)) * args_.q_stride + column(from);
            alignas(64) float values[kWidth];
            for (int64_t k = 0; k < head_dim_; k += kWidth) {
                store(values, load(q + k));
                for (int i = 0; i < kWidth; ++i) scratch_.queries[(k + i) * width_ + row] = values[i];
            }
            scratch_.positions[row] = int32_t(before + token(from));
        }
    }
    void clear_split() {
        for (int64_t row = 0; row < width_; ++row) {
            scratch_.maximum[row] = kNoMaximum;
            scratch_.sum[row] = 0.0f;
        }
        const int64_t size = round_up(head_dim_, kPanelRows) * kPanelRows;
        for (int64_t i = 0; i < size; i += kWidth) store(scratch_.output + i, zeros());
    }

    // Where the cache has what is kept of a key; side: 0 for keys, plane() for values.
    const T* cached(int64_t key, int64_t side) const {
        const int32_t* blocks = args_.block_table + item_.sequence * args_.block_table_stride;
        const int64_t block = blocks[key / args_.kv_shape.block_size];
        const int64_t row = item_.kv_head * args_.kv_shape.block_size + key % args_.kv_shape.block_size;
        return static_cast<const T*>(args_.kv) + side + 2 * block * plane() + row * head_dim_;
    }

    // The parts of a tile that lie in one block each, as floats.
    template <class Visit>
    void visit_blocks(const Range& tile, int64_t side, const Visit& visit) {
        for (int64_t key = tile.begin; key < tile.end;) {
            const int64_t left = args_.kv_shape.block_size - key % args_.kv_shape.block_size;
            const int64_t count = left < tile.end - key ? left : tile.end - key;
            if (side == 0) fetch_ahead(key, count);
            visit(key, count, as_floats(cached(key, side), count * head_dim_));
            key += count;
        }
    }
    // Blocks lie in no order that the hardware could guess: the values of these keys, and the keys
    // of the next block. Inlined, as GCC drops calls of functions that do nothing but prefetch.
    [[gnu::always_inline]] void fetch_ahead(int64_t key, int64_t count) const {
        fetch(cached(key, plane()), count);
        const int64_t next = key + count, left = item_.keys.end - next;
        if (left > 0) fetch(cached(next, 0), left < args_.kv_shape.block_size ? left : args_.kv_shape.block_size);
    }
    [[gnu::always_inline]] void fetch(const T* rows, int64_t count) const {
        const char* from = reinterpret_cast<const char*>(rows);
        const int64_t bytes = count * head_dim_ * int64_t(sizeof(T));
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
    }
    const float* as_floats(const float* from, int64_t) const { return from; }
    const float* as_floats(const Bf16* from, int64_t count) const {
        for (int64_t i = 0; i < count; i += kWidth) store(scratch_.widened + i, load(from + i));
        return scratch_.widened;
    }

    void score(const Range& tile, int64_t first, int64_t count, const float* keys) {
        tile_block<float>({.a = keys,
                           .a_stride = head_dim_,
                           .a_step = 1,
                           .b = scratch_.queries,
                           .b_stride = width_,
                           .units = head_dim_,
                           .c = scratch_.weights + (first - tile.begin) * kPanelRows,
                           .accumulate = false},
                          count, width_);
    }

    // The scores of one key for kWidth rows; unseen ones far below all others.
    Floats seen_scores(int64_t key, const float* scores, Ints positions) const {
        Floats score = load(scores) * splat(args_.scale);
        if (args_.softcap > 0) {
            score = tanh(score / splat(args_.softcap)) * splat(args_.softcap);
        }
        const Floats unseen = splat(kUnseen);
        const Ints is_later = is_greater(splat(int32_t(key)), positions);
        score = hal::cpu::as_floats(choose(is_later, as_ints(unseen), as_ints(score)));
        if (args_.window == 0) return score;
        const Ints last_hidden = sub(positions, splat(int32_t(args_.window)));
        const Ints is_seen = is_greater(splat(int32_t(key)), last_hidden);
        return hal::cpu::as_floats(choose(is_seen, as_ints(score), as_ints(unseen)));
    }

    // Scores to weights e^(score - maximum so far), and what that makes of the sums before.
    void weigh(const Range& tile) {
        for (int64_t lane = 0; lane < width_; lane += kWidth) {
            const Ints positions = load_bytes(scratch_.positions + lane);
            const Floats before = load(scratch_.maximum + lane);
            Floats maximum = before;
            for (int64_t key = tile.begin; key < tile.end; ++key) {
                float* weight = scratch_.weights + (key - tile.begin) * kPanelRows + lane;
                const Floats score = seen_scores(key, weight, positions);
                store(weight, score);
                maximum = max(maximum, score);
            }
            const Floats correction = exp(before - maximum);
            Floats sum = load(scratch_.sum + lane) * correction;
            for (int64_t key = tile.begin; key < tile.end; ++key) {
                float* weight = scratch_.weights + (key - tile.begin) * kPanelRows + lane;
                const Floats value = exp(load(weight) - maximum);
                store(weight, value);
                sum = sum + value;
            }
            store(scratch_.maximum + lane, maximum);
            store(scratch_.sum + lane, sum);
            store(scratch_.correction + lane, correction);
        }
        scale_output(scratch_.correction);
    }

    void scale_output(const float* factors) {
        for (int64_t row = 0; row < rows_; ++row) {
            const Floats factor = splat(factors[row]);
            for (int64_t k = 0; k < head_dim_; k += kWidth) {
                float* value = output_at(row, k);
                store(value, load(value) * factor);
            }
        }
    }
    float* output_at(int64_t row, int64_t k) const {
        const int64_t panel = k / kPanelRows;
        return scratch_.output + (panel * kPanelRows + row) * kPanelRows + k % kPanelRows;
    }

    void add_values(const Range& tile, int64_t first, int64_t count, const float* values) {
        for (int64_t k = 0; k < head_dim_; k += kPanelRows) {
            const int64_t columns = head_dim_ - k < kPanelRows ? head_dim_ - k : kPanelRows;
            tile_block<float>({.a = scratch_.weights + (first - tile.begin) * kPanelRows,
                               .a_stride = 1,
                               .a_step = kPanelRows,
                               .b = values + k,
                               .b_stride = head_dim_,
                               .units = count,
                               .c = output_at(0, k),
                               .accumulate = true},
                              rows_, columns);
        }
    }

    void store_output() {
        for (int64_t row = 0; row < rows_; ++row) {
            const int64_t token_row = args_.cu_seqlens_q[item_.sequence] + token(row);
            T* out = static_cast<T*>(args_.out) + token_row * args_.out_stride + column(row);
            const Floats sum = splat(total_.sum[row]);
            const float* output = total_.output + row * head_dim_;
            for (int64_t k = 0; k < head_dim_; k += kWidth) store(out + k, load(output + k) / sum);
        }
    }

    const AttentionArgs& args_;
    const AttentionItem& item_;
    const AttentionScratch scratch_;
    const int64_t head_dim_;
    const int64_t rows_;
    const int64_t width_;
    const PartialSums total_;
};

// The `chunk`th 64 rows of a sequence.
inline AttentionItem item_at(const AttentionArgs& args, int64_t sequence, int64_t kv_head,
                             int64_t num_rows, int64_t chunk) {
    const int64_t group = args.num_heads / args.kv_shape.num_kv_heads;
    const int64_t before = args.seq_lens[sequence] - num_rows / group;
    const int64_t begin = chunk * kItemRows, end = begin + kItemRows;
    const Range rows{begin, end < num_rows ? end : num_rows};
    const int64_t first = args.window > 0 ? before + rows.begin / group + 1 - args.window : 0;
    return {sequence, kv_head, rows, {first > 0 ? first : 0, before + (rows.end - 1) / group + 1}};
}

// How the work of a step is cut into items: bits do not depend on it.
class AttentionWork {
  public:
    explicit AttentionWork(const AttentionArgs& args) : args_(args) {
        for (int64_t sequence = 0; sequence < args.num_seqs; ++sequence) {
            num_items_ += num_chunks(sequence) * args.kv_shape.num_kv_heads;
        }
        splits_ = args.num_threads > 1 && num_items_ < 2 * args.num_threads;
    }

    int64_t most_items() const { return splits_ ? 4 * args_.num_threads : num_items_; }

    // Calls whole(item) or part(item, offset) for every item in a fixed order, the offset being where
    // its sums go, in floats. Returns how many all sums take.
    template <class Whole, class Part>
    int64_t visit(const Whole& whole, const Part& part) const {
        int64_t offset = 0;
        for (int64_t sequence = 0; sequence < args_.num_seqs; ++sequence) {
            const int64_t chunks = num_chunks(sequence);
            for (int64_t i = 0; i < chunks * args_.kv_shape.num_kv_heads; ++i) {
                AttentionItem item =
                    item_at(args_, sequence, i / chunks, num_rows(sequence), i % chunks);
                if (!is_split(item)) {
                    whole(item);
                    continue;
                }
                const Range keys = item.keys;
                for (int64_t split = 0; split < num_splits(keys); ++split) {
                    const int64_t end = (keys.begin / kSplitKeys + split + 1) * kSplitKeys;
                    const int64_t begin = split == 0 ? keys.begin : end - kSplitKeys;
                    item.keys = {begin, end < keys.end ? end : keys.end};
                    part(item, offset);
                    offset += sums_of(item);
                }
            }
        }
        return offset;
    }

    // Calls merge(item, offset, splits) for those that were visited in parts.
    template <class Merge>
    void visit_split(const Merge& merge) const {
        int64_t offset = 0;
        for (int64_t sequence = 0; sequence < args_.num_seqs; ++sequence) {
            const int64_t chunks = num_chunks(sequence);
            for (int64_t i = 0; i < chunks * args_.kv_shape.num_kv_heads; ++i) {
                const AttentionItem item =
                    item_at(args_, sequence, i / chunks, num_rows(sequence), i % chunks);
                if (!is_split(item)) continue;
                const int64_t splits = num_splits(item.keys);
                merge(item, offset, splits);
                offset += splits * sums_of(item);
            }
        }
    }

  private:
    static int64_t num_splits(const Range& keys) {
        return (keys.end - 1) / kSplitKeys - keys.begin / kSplitKeys + 1;
    }
    bool is_split(const AttentionItem& item) const { return splits_ && num_splits(item.keys) > 1; }
    int64_t num_rows(int64_t sequence) const {
        const int64_t tokens = args_.cu_seqlens_q[sequence + 1] - args_.cu_seqlens_q[sequence];
        return tokens * (args_.num_heads / args_.kv_shape.num_kv_heads);
    }
    int64_t num_chunks(int64_t sequence) const { return ceil_div(num_rows(sequence), kItemRows); }
    int64_t sums_of(const AttentionItem& item) const {
        return PartialSums::num_floats(item.rows.end - item.rows.begin, args_.kv_shape.head_dim);
    }

    const AttentionArgs& args_;
    int64_t num_items_ = 0;
    bool splits_;
};

inline AttentionScratch attention_scratch(const AttentionArgs& args) {
    static thread_local Arena arena;
    const int64_t head_dim = args.kv_shape.head_dim;
    return {arena.reserve(4 * AttentionScratch::num_floats(head_dim)), head_dim};
}

// Every parts-th item, from `part` on: later ones of a prefill see more keys.
template <class T>
void run_items(const AttentionArgs& args, const AttentionWork& work, float* sums, int64_t part,
               int64_t parts) {
    const AttentionScratch scratch = attention_scratch(args);
    int64_t index = 0;
    work.visit(
        [&](const AttentionItem& item) {
            if (index++ % parts == part) ItemAttention<T>(args, item, scratch).run();
        },
        [&](const AttentionItem& item, int64_t offset) {
            if (index++ % parts != part) return;
            ItemAttention<T>(args, item, scratch).run_partial(sums + offset);
        });
}

template <class T>
void run_attention_in(const AttentionArgs& args) {
    static thread_local Arena arena;
    const AttentionWork work(args);
    const int64_t floats = work.visit([](const AttentionItem&) {},
                                      [](const AttentionItem&, int64_t) {});
    float* sums = reinterpret_cast<float*>(arena.reserve(4 * floats));
    const int64_t parts = chunks_for(args.num_threads, work.most_items());
    for_each_chunk(args.num_threads, parts, [&](int64_t part) {
        run_items<T>(args, work, sums, part, parts);
    });
    if (floats == 0) return;
    const AttentionScratch scratch = attention_scratch(args);
    work.visit_split([&](const AttentionItem& item, int64_t offset, int64_t splits) {
        ItemAttention<T>(args, item, scratch).merge(sums + offset, splits);
    });
}

void run_attention(const AttentionArgs& args) {
    if (args.dtype == DType::kBfloat16) {
        run_attention_in<Bf16>(args);
    } else {
        run_attention_in<float>(args);
    }
}

}  // namespace
}  // namespace hal::cpu
