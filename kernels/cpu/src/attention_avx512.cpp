// Paged attention: online softmax over tiles of 64 keys. The heads that share a KV head are rows of
// one product, so K and V are read once. Many rows run on the micro-kernel of tile_avx512.h over
// packed tiles, few rows straight from the cache; both add in the same order.
//
// Source: online softmax (Milakov and Gimelshein 2018); split over K as in Flash-Decoding (2023).
#include "arena.h"
#include "attention_direct_avx512.h"
#include "threads.h"

namespace hal::cpu {
namespace {

// Stands for minus infinity in running maxima, where inf - inf would be NaN.
constexpr float kNoScore = -1e30f;

// Softmax state of a set of rows, scores being in powers of two. values[row] is the V sum weighted
// by 2^(score - maximum); the sum of the weights is kept in 16 lanes until it is needed.
struct Sums {
    float* maximum;
    float* weights;  // [rows][16]
    float* values;
    int64_t stride;  // between rows, of all three

    int64_t dim() const { return stride - 2 * kLanes; }
};

// The rows of one item, cut from a thread's arena.
template <class T>
struct Scratch {
    KeyTile<T> tiles[2];       // the current one and the next, in turn
    const T* zeros;            // [head_dim]
    T* q;                      // [rows][head_dim]
    T* k;                      // packed [head_dim / step][keys][step]
    T* v;                      // packed by 64 columns: [keys / step][columns][step]
    T* p;                      // [rows][64] softmax weights
    float* scores;             // [rows][64]
    Sums split;
    Sums total;
};

Sums carve_sums(char** memory, int64_t rows, int64_t row_floats) {
    float* base = reinterpret_cast<float*>(*memory);
    *memory += rows * row_floats * 4;
    return {base, base + kLanes, base + 2 * kLanes, row_floats};
}

template <class T>
T* carve(char** memory, int64_t count) {
    T* result = reinterpret_cast<T*>(*memory);
    *memory += round_up(count * int64_t(sizeof(T)), 64);
    return result;
}

template <class T>
Scratch<T> make_scratch(const AttentionArgs& args, Arena& arena) {
    const int64_t dim = round_up(args.kv_shape.head_dim, 2 * kLanes);
    const int64_t row_floats = partial_row(args);
    const int64_t elements = (kItemRows + 1 + 2 * kTileKeys) * dim + kItemRows * kTileKeys;
    const int64_t floats = kItemRows * (kTileKeys + 2 * row_floats);
    char* memory = arena.reserve(elements * int64_t(sizeof(T)) + floats * 4);
    Scratch<T> s;
    s.q = carve<T>(&memory, kItemRows * dim);
    s.k = carve<T>(&memory, kTileKeys * dim);
    s.v = carve<T>(&memory, kTileKeys * dim);
    s.p = carve<T>(&memory, kItemRows * kTileKeys);
    T* zeros = carve<T>(&memory, dim);
    __builtin_memset(zeros, 0, size_t(dim) * sizeof(T));
    s.zeros = zeros;
    s.scores = carve<float>(&memory, kItemRows * kTileKeys);
    s.split = carve_sums(&memory, kItemRows, row_floats);
    s.total = carve_sums(&memory, kItemRows, row_floats);
    return s;
}

void clear_row(const Sums& sums, int64_t row) {
    sums.maximum[row * sums.stride] = kNoScore;
    for (int64_t i = 0; i < kLanes + sums.dim(); i += kLanes) {
        _mm512_storeu_ps(sums.weights + row * sums.stride + i, _mm512_setzero_ps());
    }
}

void clear(const Sums& sums, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) clear_row(sums, row);
}

// 2^x for x <= 0; exactly 1 at 0 and 0 below -152, NaN stays NaN. The Taylor polynomial of degree D
// on [-1/2, 1/2]: 4e-5 from the truth at degree 4, 2 ulp at degree 6.
template <int D>
inline __m512 exp2(__m512 x) {
    constexpr float coefficients[] = {1.0f,          6.9314718e-1f, 2.4022651e-1f, 5.5504109e-2f,
                                      9.6181291e-3f, 1.3333558e-3f, 1.5403530e-4f};
    x = _mm512_max_ps(_mm512_set1_ps(-152.0f), x);
    const __m512 n = _mm512_roundscale_ps(x, 0);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(coefficients[D]);
#pragma GCC unroll 6
    for (int i = D - 1; i >= 0; --i) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficients[i]));
    return _mm512_scalef_ps(p, n);
}

// Weights are about to be rounded to bfloat16, whose unit is 4e-3.
inline __m512 weight_of(__m512 x, const Bf16*) { return exp2<4>(x); }
inline __m512 weight_of(__m512 x, const float*) { return exp2<6>(x); }

float exp2_scalar(float x) {
    return x == 0.0f ? 1.0f : _mm512_cvtss_f32(exp2<6>(_mm512_set1_ps(x)));
}

// into += from for one row. Merging an empty state, or into one, changes no bit of the other.
void merge_row(const Sums& from, const Sums& into, int64_t row) {
    const int64_t at = row * from.stride;
    const float maximum = __builtin_fmaxf(from.maximum[at], into.maximum[at]);
    const __m512 from_scale = _mm512_set1_ps(exp2_scalar(from.maximum[at] - maximum));
    const __m512 into_scale = _mm512_set1_ps(exp2_scalar(into.maximum[at] - maximum));
    into.maximum[at] = maximum;
    for (int64_t i = 0; i < kLanes + from.dim(); i += kLanes) {
        const __m512 kept = _mm512_mul_ps(load(into.weights + at + i), into_scale);
        const __m512 added = load(from.weights + at + i);
        _mm512_storeu_ps(into.weights + at + i, _mm512_fmadd_ps(added, from_scale, kept));
    }
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
void load_queries(const AttentionArgs& args, const Item& item, T* q) {
    const int64_t group = group_size(args);
    const int64_t dim = args.kv_shape.head_dim;
    for (int64_t flat = item.rows.begin; flat < item.rows.end; ++flat, q += dim) {
        const int64_t token = item.sequence.first_token + flat / group;
        const int64_t head = item.kv_head * group + flat % group;
        const T* source = static_cast<const T*>(args.q) + token * args.q_stride + head * dim;
        __builtin_memcpy(q, source, size_t(dim) * sizeof(T));
    }
}

inline uint64_t low_bits(int64_t count) {
    if (count <= 0) return 0;
    return count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
}

// What turns products into scores in powers of two.
struct Scale {
    explicit Scale(const AttentionArgs& args) {
        constexpr float log2_e = 1.44269504f;
        capped = args.softcap > 0;
        product = _mm512_set1_ps(capped ? args.scale / args.softcap : args.scale * log2_e);
        cap = _mm512_set1_ps(args.softcap * log2_e);
    }

    __m512 operator()(__m512 products) const {
        const __m512 scaled = _mm512_mul_ps(products, product);
        return capped ? _mm512_mul_ps(tanh(scaled), cap) : scaled;
    }

    bool capped;
    __m512 product;
    __m512 cap;
};

void raise_maximum(const Sums& sums, int64_t row, __m512 highest) {
    float& maximum = sums.maximum[row * sums.stride];
    const float before = maximum;
    maximum = _mm512_reduce_max_ps(highest);
    if (before == kNoScore) return;  // nothing has been summed
    const __m512 scale = _mm512_set1_ps(exp2_scalar(before - maximum));
    float* weights = sums.weights + row * sums.stride;
    for (int64_t i = 0; i < kLanes + sums.dim(); i += kLanes) {
        _mm512_storeu_ps(weights + i, _mm512_mul_ps(load(weights + i), scale));
    }
}

// scores -> softmax weights of one row, 16 * V keys, and its running state.
template <class T, int V>
inline void weigh_row(const Scale& scale, const Scratch<T>& s, int64_t row, uint64_t seen) {
    const Sums& sums = s.split;
    __m512 scores[V];
    __m512 highest = _mm512_set1_ps(sums.maximum[row * sums.stride]);
    const __m512 before = highest;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const __mmask16 mask = __mmask16(seen >> (v * kLanes));
        scores[v] = scale(load(s.scores + row * kTileKeys + v * kLanes));
        highest = _mm512_mask_max_ps(highest, mask, highest, scores[v]);
    }
    if (_mm512_cmp_ps_mask(highest, before, _CMP_GT_OQ) != 0) raise_maximum(sums, row, highest);
    const __m512 maximum = _mm512_set1_ps(sums.maximum[row * sums.stride]);
    T* p = s.p + row * kTileKeys;
    float* weights = sums.weights + row * sums.stride;
    __m512 weight = load(weights);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
        const __m512 e = weight_of(_mm512_sub_ps(scores[v], maximum), p);
        const __m512 kept = _mm512_maskz_mov_ps(__mmask16(seen >> (v * kLanes)), e);
        store(p + v * kLanes, kept, __mmask16(0xffff));
        weight = _mm512_add_ps(weight, rounded(p, kept));
    }
    _mm512_storeu_ps(weights, weight);
}

template <class T, int V>
[[gnu::noinline]] void weigh_rows(const AttentionArgs& args, const Item& item, const Scratch<T>& s,
                                  int64_t begin, Range rows) {
    const Scale scale(args);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const Range seen = visible_keys(args, item.sequence, item.rows.begin + row);
        const uint64_t bits = low_bits(seen.end - begin) & ~low_bits(seen.begin - begin);
        weigh_row<T, V>(scale, s, row, bits);
    }
}

template <class T>
void weigh(const AttentionArgs& args, const Item& item, const Scratch<T>& s, int64_t begin,
           int64_t width, Range rows) {
    if (width == 64) weigh_rows<T, 4>(args, item, s, begin, rows);
    if (width == 48) weigh_rows<T, 3>(args, item, s, begin, rows);
    if (width == 32) weigh_rows<T, 2>(args, item, s, begin, rows);
    if (width == 16) weigh_rows<T, 1>(args, item, s, begin, rows);
}

template <class T>
void add_values(const AttentionArgs& args, const Scratch<T>& s, Range rows, int64_t keys) {
    const int64_t dim = round_up(args.kv_shape.head_dim, kLanes);
    const T* panel = s.v;
    for (int64_t first = 0; first < dim; first += kPanelRows) {
        const int64_t width = dim - first < kPanelRows ? dim - first : kPanelRows;
        tile_block<T>({.a = s.p + rows.begin * kTileKeys,
                       .a_stride = kTileKeys,
                       .b = panel,
                       .k = keys,
                       .c = s.split.values + rows.begin * s.split.stride + first,
                       .c_stride = s.split.stride,
                       .accumulate = true},
                      rows.end - rows.begin, width / kLanes);
        panel += keys * width;
    }
}

template <class T>
void run_direct(const AttentionArgs& args, const Item& item, const Scratch<T>& s, int64_t begin,
                const DirectOperands<T>& op) {
    const int64_t rows = item.rows.end - item.rows.begin;
    direct_scores(op, rows);
    weigh(args, item, s, begin, op.width, {0, rows});
    direct_values(op, rows);
}

// Adds a tile of 64 keys from `begin` to s.split; `tile` is its place in s.tiles.
template <class T>
void run_tile(const AttentionArgs& args, const Item& item, const Scratch<T>& s, int64_t begin,
              int64_t tile) {
    const int64_t left = item.keys.end - begin;
    const int64_t width = round_up(left < kTileKeys ? left : kTileKeys, kLanes);
    const int64_t dim = args.kv_shape.head_dim;
    const KeyTile<T>& current = s.tiles[tile];
    const KeyTile<T>& next = s.tiles[1 - tile];
    if (item.rows.end - item.rows.begin <= kDirectRows) {
        return run_direct(args, item, s, begin,
                          {.tile = current,
                           .next = next,
                           .dim = dim,
                           .width = width,
                           .q = s.q,
                           .p = s.p,
                           .scores = s.scores,
                           .values = s.split.values,
                           .values_stride = s.split.stride});
    }
    const Range rows = seeing_rows(args, item, begin);
    pack_keys(current, next, dim, width, s.k);
    tile_block<T>({.a = s.q + rows.begin * dim,
                   .a_stride = dim,
                   .b = s.k,
                   .k = dim,
                   .c = s.scores + rows.begin * kTileKeys,
                   .c_stride = kTileKeys,
                   .accumulate = false},
                  rows.end - rows.begin, width / kLanes);
    weigh(args, item, s, begin, width, rows);
    pack_values(current, next, dim, width, s.v);
    add_values(args, s, rows, width);
}

// Only what comes next in the sequence can be fetched early, but that beyond the item's keys, too.
template <class T>
void run_split(const AttentionArgs& args, const Item& item, Scratch<T>& s, Range keys) {
    clear(s.split, item.rows.end - item.rows.begin);
    const Range written{item.keys.begin, args.seq_lens[item.sequence.index]};
    int64_t tile = 0;
    int64_t begin = keys.begin / kTileKeys * kTileKeys;
    find_tile(args, item, begin, item.keys, s.zeros, s.tiles[tile]);
    for (; begin < keys.end; begin += kTileKeys, tile = 1 - tile) {
        const bool is_last = begin + kTileKeys >= keys.end;
        find_tile(args, item, begin + kTileKeys, is_last ? written : item.keys, s.zeros,
                  s.tiles[1 - tile]);
        run_tile(args, item, s, begin, tile);
    }
}

template <class T>
void run_item(const AttentionArgs& args, const Item& item, Scratch<T>& s, float* partials) {
    const int64_t rows = item.rows.end - item.rows.begin;
    load_queries(args, item, s.q);
    if (item.partial >= 0) {
        // One split; visit_splits cut the keys to it.
        const Sums kept = s.split;
        char* memory = reinterpret_cast<char*>(partials + item.partial);
        s.split = carve_sums(&memory, rows, s.split.stride);
        run_split(args, item, s, item.keys);
        s.split = kept;
        return;
    }
    clear(s.total, rows);
    for (int64_t begin = item.keys.begin; begin < item.keys.end;) {
        const int64_t next = (begin / kSplitKeys + 1) * kSplitKeys;
        const Range keys{begin, next < item.keys.end ? next : item.keys.end};
        run_split(args, item, s, keys);
        for (int64_t row = 0; row < rows; ++row) merge_row(s.split, s.total, row);
        begin = keys.end;
    }
    for (int64_t row = 0; row < rows; ++row) write_row<T>(args, item, s.total, row);
}

// Runs the items whose middle, in cost, falls into this thread's equal share.
template <class T>
void run_share(const AttentionArgs& args, Scratch<T>& s, float* partials, Range costs) {
    int64_t before = 0;
    visit_items(args, [&](const Item& item) {
        const int64_t middle = before + cost(item) / 2;
        before += cost(item);
        if (middle >= costs.begin && middle < costs.end) run_item(args, item, s, partials);
    });
}

// Merges the splits of every split sequence in order; its rows are dealt out over the threads.
template <class T>
void merge_partials(const AttentionArgs& args, const Scratch<T>& s, float* partials,
                    int64_t thread) {
    const int64_t threads = thread_count();
    visit_items(args, [&](const Item& item) {
        if (item.partial < 0) return;
        char* memory = reinterpret_cast<char*>(partials + item.partial);
        const Sums split = carve_sums(&memory, item.rows.end, s.total.stride);
        const Range all = item_keys(args, item.sequence, item.rows);
        const int64_t turn = item.sequence.index + item.kv_head;
        for (int64_t row = 0; row < item.rows.end; ++row) {
            if ((turn + row) % threads != thread) continue;
            if (item.keys.begin == all.begin) clear_row(s.total, row);
            merge_row(split, s.total, row);
            if (item.keys.end == all.end) write_row<T>(args, item, s.total, row);
        }
    });
}

template <class T>
void run(const AttentionArgs& args) {
    static thread_local Arena partial_arena;
    int64_t total = 0;
    const int64_t floats = visit_items(args, [&](const Item& item) { total += cost(item); });
    float* partials = reinterpret_cast<float*>(partial_arena.reserve(floats * 4));
#pragma omp parallel num_threads(args.num_threads)
    {
        static thread_local Arena arena;
        const int64_t thread = thread_index();
        const int64_t threads = thread_count();
        Scratch<T> s = make_scratch<T>(args, arena);
        run_share(args, s, partials, share(total, thread, threads));
        if (floats > 0) {
#pragma omp barrier
            merge_partials(args, s, partials, thread);
        }
    }
}

}  // namespace

void attention(const AttentionArgs& args) {
    if (args.dtype == DType::kBfloat16) {
        run<Bf16>(args);
    } else {
        run<float>(args);
    }
}

}  // namespace hal::cpu
