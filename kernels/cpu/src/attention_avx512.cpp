// Paged attention: online softmax over tiles of 64 keys. The heads that share a KV head are rows of
// one product, so K and V are read once, in the order in which the cache holds them.
//
// Source: online softmax (Milakov and Gimelshein 2018); split over K as in Flash-Decoding (2023).
#include "arena.h"
#include "attention_rows_avx512.h"
#include "on_demand.h"
#include "threads.h"

namespace hal::cpu {
namespace {

// What queries and results are in, for a cache of T.
template <class T>
struct OutputOf {
    using type = T;
};
template <>
struct OutputOf<Code> {
    using type = Bf16;
};

// One thread's scratch.
struct Scratch {
    KeyTile tiles[2];   // the current one and the next, in turn
    const char* zeros;  // a strip
    char* copies;       // V of two strips
    Rows rows;
};

template <class T>
T* carve(char** memory, int64_t count) {
    T* result = reinterpret_cast<T*>(*memory);
    *memory += round_up(count * int64_t(sizeof(T)), 64);
    return result;
}

template <class T>
Scratch make_scratch(const AttentionArgs& args, Arena& arena) {
    constexpr int64_t rows = kItemRows, parts = kParts<T>;
    const KvShape& shape = args.kv_shape;
    const int64_t q_bytes = rows * parts * shape.head_dim * int64_t(sizeof(T));
    const int64_t row_floats = partial_row(args);
    const int64_t dwords = rows * (2 * parts * kTileKeys + 2 * row_floats + parts + 2) + 2 * kTileKeys;
    char* memory = arena.reserve(3 * shape.strip_bytes() + q_bytes + 4 * dwords + 8 * 64);
    Scratch s;
    char* zeros = carve<char>(&memory, shape.strip_bytes());
    __builtin_memset(zeros, 0, size_t(shape.strip_bytes()));
    s.zeros = zeros;
    s.copies = carve<char>(&memory, 2 * shape.side_bytes());
    s.rows.q = carve<char>(&memory, q_bytes);
    s.rows.start = carve<int>(&memory, rows * parts);
    s.rows.q_scales = carve<float>(&memory, rows);
    s.rows.k_scales = carve<float>(&memory, kTileKeys);
    s.rows.v_scales = carve<float>(&memory, kTileKeys);
    s.rows.scores = carve<char>(&memory, 4 * rows * parts * kTileKeys);
    s.rows.p = carve<char>(&memory, rows * parts * kTileKeys * int64_t(sizeof(T)));
    s.rows.p_scales = carve<float>(&memory, rows);
    s.rows.split = carve_sums(&memory, rows, row_floats);
    s.rows.total = carve_sums(&memory, rows, row_floats);
    return s;
}

template <class T>
void write_row(const AttentionArgs& args, const Item& item, const Sums& sums, int64_t row) {
    const int64_t flat = item.rows.begin + row;
    const int64_t group = group_size(args);
    const int64_t token = item.sequence.first_token + flat / group;
    const int64_t head = item.kv_head * group + flat % group;
    const int64_t dim = args.kv_shape.head_dim;
    T* out = static_cast<T*>(args.out) + token * args.out_stride + head * dim;
    const float weight = _mm512_reduce_add_ps(load(sums.weights + row * sums.stride));
    const __m512 inverse = _mm512_set1_ps(1.0f / weight);
    for (int64_t i = 0; i < dim; i += kLanes) {
        const __m512 value = _mm512_mul_ps(load(sums.values + row * sums.stride + i), inverse);
        store(out + i, value, tail_mask(dim - i));
    }
}

template <class T>
void load_queries(const AttentionArgs& args, const Item& item, const Rows& rows) {
    using Q = typename OutputOf<T>::type;
    const int64_t group = group_size(args);
    const int64_t dim = args.kv_shape.head_dim;
    for (int64_t row = 0; row < item.rows.end - item.rows.begin; ++row) {
        const int64_t flat = item.rows.begin + row;
        const int64_t token = item.sequence.first_token + flat / group;
        const int64_t head = item.kv_head * group + flat % group;
        const Q* from = static_cast<const Q*>(args.q) + token * args.q_stride + head * dim;
        if constexpr (kParts<T> == 1) {
            load_query(args, from, rows, row);
        } else {
            load_query(args, from, rows, row, static_cast<const T*>(nullptr));
        }
    }
}

// Adds the tile of 64 keys from `begin` to s.rows.split; `turn` is its place in s.tiles.
template <class T>
void run_tile(const AttentionArgs& args, const Item& item, Scratch& s, int64_t begin,
              int64_t turn) {
    KeyTile& tile = s.tiles[turn];
    const KeyTile& next = s.tiles[1 - turn];
    const int64_t left = item.keys.end - begin;
    const int64_t strips = left < kTileKeys ? ceil_div(left, kLanes) : kTileStrips;
    const Range rows = seeing_rows(args, item, begin);
    const Rows& r = s.rows;
    multiply_keys<T>({.tile = tile,
                      .next = next,
                      .strips = strips,
                      .units = args.kv_shape.head_dim / args.kv_shape.step(),
                      .q = r.q,
                      .start = r.start,
                      .scores = r.scores},
                     rows);
    weigh<T>(args, item, r, tile, next, begin, strips, rows);
    // What codes are multiplied by is zero where they are not seen, and they are never NaN.
    if constexpr (kParts<T> == 1) hide_values<T>(args, item, begin, s.copies, tile);
    multiply_values<T>({.tile = tile,
                        .next = next,
                        .strips = strips,
                        .dim = args.kv_shape.head_dim,
                        .p = r.p,
                        .scales = r.p_scales,
                        .values = r.split.values,
                        .stride = r.split.stride},
                       rows);
}

// The tiles of one item in order, each fetched while the one before it is worked on; s.tiles[turn]
// is the current one.
struct TileOrder {
    const Item& item;
    const Item* following;  // the thread's next item
    int64_t turn;
};

template <class T>
void run_split(const AttentionArgs& args, TileOrder& order, Scratch& s, Range keys) {
    const Item& item = order.item;
    clear(s.rows.split, item.rows.end - item.rows.begin);
    for (int64_t begin = keys.begin / kTileKeys * kTileKeys; begin < keys.end; begin += kTileKeys) {
        KeyTile& next = s.tiles[1 - order.turn];
        if (begin + kTileKeys < item.keys.end) {
            find_tile(args, item, begin + kTileKeys, item.keys, s.zeros, next);
        } else if (order.following != nullptr) {
            first_tile(args, *order.following, s.zeros, next);
        } else {
            next = s.tiles[order.turn];
        }
        run_tile<T>(args, item, s, begin, order.turn);
        order.turn = 1 - order.turn;
    }
}

template <class T>
void run_item(const AttentionArgs& args, TileOrder order, Scratch& s, float* partials) {
    const Item& item = order.item;
    const int64_t rows = item.rows.end - item.rows.begin;
    load_queries<T>(args, item, s.rows);
    first_tile(args, item, s.zeros, s.tiles[order.turn]);
    if (item.partial >= 0) {
        // One split; visit_splits cut the keys to it.
        const Sums kept = s.rows.split;
        char* memory = reinterpret_cast<char*>(partials + item.partial);
        s.rows.split = carve_sums(&memory, rows, kept.stride);
        run_split<T>(args, order, s, item.keys);
        s.rows.split = kept;
        return;
    }
    clear(s.rows.total, rows);
    for (int64_t begin = item.keys.begin; begin < item.keys.end;) {
        const int64_t next = (begin / kSplitKeys + 1) * kSplitKeys;
        const Range keys{begin, next < item.keys.end ? next : item.keys.end};
        run_split<T>(args, order, s, keys);
        for (int64_t row = 0; row < rows; ++row) merge_row(s.rows.split, s.rows.total, row);
        begin = keys.end;
    }
    for (int64_t row = 0; row < rows; ++row) {
        write_row<typename OutputOf<T>::type>(args, item, s.rows.total, row);
    }
}

// Rotates and stores the step's own tokens, where that is asked for, once an item needs them.
class NewTokensOnDemand {
  public:
    NewTokensOnDemand(const AttentionArgs& args, Arena& arena)
        : args_(args),
          num_tokens_(args.new_tokens != nullptr ? args.new_tokens->rope.num_tokens : 0),
          on_demand_(arena, ceil_div(num_tokens_, kUnit)) {}

    void need(const Item& item) const {
        if (num_tokens_ == 0) return;
        const int64_t first = item.sequence.first_token;
        const int64_t end = first + ceil_div(item.rows.end, group_size(args_));
        on_demand_.need({first / kUnit, ceil_div(end, kUnit)}, [&](int64_t unit) {
            const int64_t last = (unit + 1) * kUnit;
            rope_and_write_kv(*args_.new_tokens, unit * kUnit,
                              last < num_tokens_ ? last : num_tokens_);
        });
    }

  private:
    static constexpr int64_t kUnit = 4;

    const AttentionArgs& args_;
    int64_t num_tokens_;
    OnDemand on_demand_;
};

// Runs the items whose middle, in cost, falls into this equal share.
template <class T>
void run_share(const AttentionArgs& args, const NewTokensOnDemand& tokens, Scratch& s,
               float* partials, Range costs) {
    int64_t before = 0;
    Item waiting{};
    bool is_waiting = false;
    visit_items(args, [&](const Item& item) {
        const int64_t middle = before + cost(item) / 2;
        before += cost(item);
        if (middle < costs.begin || middle >= costs.end) return;
        tokens.need(item);  // now: its first keys are looked for while the item before it runs
        if (is_waiting) run_item<T>(args, {waiting, &item, 0}, s, partials);
        waiting = item;
        is_waiting = true;
    });
    if (is_waiting) run_item<T>(args, {waiting, nullptr, 0}, s, partials);
}

// Merges the splits of every split sequence in order; its rows are dealt out over the parts.
template <class T>
void merge_partials(const AttentionArgs& args, const Sums& total, float* partials, int64_t part,
                    int64_t parts) {
    visit_items(args, [&](const Item& item) {
        if (item.partial < 0) return;
        char* memory = reinterpret_cast<char*>(partials + item.partial);
        const Sums split = carve_sums(&memory, item.rows.end, total.stride);
        const Range all = item_keys(args, item.sequence, item.rows);
        const int64_t turn = item.sequence.index + item.kv_head;
        for (int64_t row = 0; row < item.rows.end; ++row) {
            if ((turn + row) % parts != part) continue;
            if (item.keys.begin == all.begin) clear_row(total, row);
            merge_row(split, total, row);
            if (item.keys.end == all.end) write_row<T>(args, item, total, row);
        }
    });
}

template <class T>
Scratch thread_scratch(const AttentionArgs& args) {
    static thread_local Arena arena;
    return make_scratch<T>(args, arena);
}

template <class T>
void run(const AttentionArgs& args) {
    static thread_local Arena partial_arena, token_arena;
    const NewTokensOnDemand tokens(args, token_arena);
    int64_t total = 0;
    const int64_t floats = visit_items(args, [&](const Item& item) { total += cost(item); });
    float* partials = reinterpret_cast<float*>(partial_arena.reserve(floats * 4));
    for_each_range(args.num_threads, total, [&](const Range& costs) {
        Scratch s = thread_scratch<T>(args);
        run_share<T>(args, tokens, s, partials, costs);
    });
    if (floats == 0) return;
    const int64_t parts = chunks_for(args.num_threads, total);
    for_each_chunk(args.num_threads, parts, [&](int64_t part) {
        Scratch s = thread_scratch<T>(args);
        merge_partials<typename OutputOf<T>::type>(args, s.rows.total, partials, part, parts);
    });
}

}  // namespace

void attention(const AttentionArgs& args) {
    if (args.kv_shape.dtype == DType::kInt8) {
        run<Code>(args);
    } else if (args.kv_shape.dtype == DType::kBfloat16) {
        run<Bf16>(args);
    } else {
        run<float>(args);
    }
}

}  // namespace hal::cpu
