// Paged attention: online softmax over tiles of 64 keys, both products on the micro-kernel of
// tile_avx512.h. The heads that share a KV head are rows of one product, so K and V are read once.
//
// Source: online softmax (Milakov and Gimelshein 2018); split over K as in Flash-Decoding (2023).
#include "arena.h"
#include "attention_work.h"
#include "threads.h"
#include "tile_avx512.h"

namespace hal::cpu {
namespace {

// Stands for minus infinity in running maxima, where inf - inf would be NaN.
constexpr float kNoScore = -1e30f;

// Softmax state of a set of rows. values[row] is the V sum weighted by exp(score - maximum).
struct Sums {
    float* maximum;
    float* weight;
    float* values;
    int64_t stride;  // between rows, of all three
};

// The rows of one item, cut from a thread's arena.
template <class T>
struct Scratch {
    const T* keys[kTileKeys];  // nullptr: not visible, possibly not even written
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
    return {base, base + 1, base + kLanes, row_floats};
}

template <class T>
T* carve(char** memory, int64_t count) {
    T* result = reinterpret_cast<T*>(*memory);
    *memory += round_up(count * int64_t(sizeof(T)), 64);
    return result;
}

template <class T>
Scratch<T> make_scratch(const AttentionArgs& args, Arena& arena) {
    const int64_t dim = round_up(args.kv_shape.head_dim, kLanes);
    const int64_t row_floats = partial_row(args);
    const int64_t elements = kItemRows * dim + 2 * kTileKeys * dim + kItemRows * kTileKeys;
    const int64_t floats = kItemRows * (kTileKeys + 2 * row_floats);
    char* memory = arena.reserve(elements * int64_t(sizeof(T)) + floats * 4);
    Scratch<T> s;
    s.q = carve<T>(&memory, kItemRows * dim);
    s.k = carve<T>(&memory, kTileKeys * dim);
    s.v = carve<T>(&memory, kTileKeys * dim);
    s.p = carve<T>(&memory, kItemRows * kTileKeys);
    s.scores = carve<float>(&memory, kItemRows * kTileKeys);
    s.split = carve_sums(&memory, kItemRows, row_floats);
    s.total = carve_sums(&memory, kItemRows, row_floats);
    return s;
}

void clear_row(const Sums& sums, int64_t row, int64_t dim) {
    sums.maximum[row * sums.stride] = kNoScore;
    sums.weight[row * sums.stride] = 0.0f;
    for (int64_t i = 0; i < dim; i += kLanes) {
        _mm512_storeu_ps(sums.values + row * sums.stride + i, _mm512_setzero_ps());
    }
}

void clear(const Sums& sums, int64_t rows, int64_t dim) {
    for (int64_t row = 0; row < rows; ++row) clear_row(sums, row, dim);
}

float exp_scalar(float x) {
    return x == 0.0f ? 1.0f : _mm512_cvtss_f32(exp(_mm512_set1_ps(x)));
}

// into += from for one row. Merging an empty state, or into one, changes no bit of the other.
void merge_row(const Sums& from, const Sums& into, int64_t row, int64_t dim) {
    const int64_t at = row * from.stride;
    const float maximum = __builtin_fmaxf(from.maximum[at], into.maximum[at]);
    const float from_scale = exp_scalar(from.maximum[at] - maximum);
    const float into_scale = exp_scalar(into.maximum[at] - maximum);
    into.maximum[at] = maximum;
    into.weight[at] = into.weight[at] * into_scale + from.weight[at] * from_scale;
    for (int64_t i = 0; i < dim; i += kLanes) {
        const __m512 kept = _mm512_mul_ps(load(into.values + at + i), _mm512_set1_ps(into_scale));
        const __m512 added = load(from.values + at + i);
        _mm512_storeu_ps(into.values + at + i,
                         _mm512_fmadd_ps(added, _mm512_set1_ps(from_scale), kept));
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
    const __m512 inverse = _mm512_set1_ps(1.0f / sums.weight[row * sums.stride]);
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

// Where the keys [begin, begin + 64) of the item lie.
template <class T>
void find_keys(const AttentionArgs& args, const Item& item, int64_t begin, const T** keys) {
    const KvShape& shape = args.kv_shape;
    const int32_t* blocks = args.block_table + item.sequence.index * args.block_table_stride;
    int64_t block = begin / shape.block_size;
    int64_t offset = begin % shape.block_size;
    for (int64_t i = 0; i < kTileKeys; ++i) {
        const bool visible = begin + i >= item.keys.begin && begin + i < item.keys.end;
        keys[i] = nullptr;
        if (visible) {
            const int64_t index = shape.index(blocks[block], item.kv_head, offset);
            keys[i] = static_cast<const T*>(args.kv) + index;
        }
        if (++offset == shape.block_size) {
            offset = 0;
            ++block;
        }
    }
}

template <class T>
void pack_keys(const T* const* keys, int64_t dim, int64_t width, T* packed) {
    constexpr int64_t step = 4 / sizeof(T);
    const int64_t units = dim / step;
    int* out = reinterpret_cast<int*>(packed);
    for (int64_t first = 0; first < width; first += kLanes) {
        for (int64_t u = 0; u < units; u += kLanes) {
            const __mmask16 mask = tail_mask(units - u);
            __m512i rows[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; ++i) {
                const T* key = keys[first + i];
                rows[i] = key == nullptr ? _mm512_setzero_si512()
                                         : _mm512_maskz_loadu_epi32(mask, key + u * step);
            }
            transpose16(rows);
            const int64_t count = units - u < kLanes ? units - u : kLanes;
            for (int64_t i = 0; i < count; ++i) {
                _mm512_storeu_si512(out + (u + i) * width + first, rows[i]);
            }
        }
    }
}

inline __m512i value_bits(const Bf16* key, int64_t at, __mmask16 mask) {
    if (key == nullptr) return _mm512_setzero_si512();
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, key + at));
}

// 16 columns of one step of keys: two interleaved rows of bfloat16, one row of float32.
inline __m512i value_step(const Bf16* const* keys, int64_t at, __mmask16 mask) {
    const __m512i odd = _mm512_slli_epi32(value_bits(keys[1], at, mask), 16);
    return _mm512_or_si512(value_bits(keys[0], at, mask), odd);
}
inline __m512i value_step(const float* const* keys, int64_t at, __mmask16 mask) {
    if (keys[0] == nullptr) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi32(mask, keys[0] + at);
}

template <class T>
void pack_values(const AttentionArgs& args, const T* const* keys, int64_t count, T* packed) {
    constexpr int64_t step = 4 / sizeof(T);
    const int64_t dim = args.kv_shape.head_dim;
    int* out = reinterpret_cast<int*>(packed);
    for (int64_t first = 0; first < dim; first += kPanelRows) {
        for (int64_t key = 0; key < count; key += step) {
            for (int64_t c = first; c < dim && c < first + kPanelRows; c += kLanes) {
                const __mmask16 mask = tail_mask(dim - c);
                const __m512i bits = value_step(keys + key, args.kv_shape.plane() + c, mask);
                _mm512_storeu_si512(out, bits);
                out += kLanes;
            }
        }
    }
}

// scores -> softmax weights of one row, and its running state. `seen` is relative to the tile.
template <class T>
void weigh_row(const AttentionArgs& args, const Scratch<T>& s, int64_t row, Range seen,
               int64_t vectors) {
    const Sums& sums = s.split;
    __m512 scores[kTileKeys / kLanes];
    __mmask16 masks[kTileKeys / kLanes];
    __m512 highest = _mm512_set1_ps(kNoScore);
    for (int64_t v = 0; v < vectors; ++v) {
        const int64_t at = v * kLanes;
        masks[v] = _kandn_mask16(seen.begin > at ? tail_mask(seen.begin - at) : __mmask16(0),
                                 seen.end > at ? tail_mask(seen.end - at) : __mmask16(0));
        const __m512 products = load(s.scores + row * kTileKeys + at);
        scores[v] = _mm512_mul_ps(products, _mm512_set1_ps(args.scale));
        if (args.softcap > 0) {
            const __m512 ratio = _mm512_mul_ps(scores[v], _mm512_set1_ps(1.0f / args.softcap));
            scores[v] = _mm512_mul_ps(tanh(ratio), _mm512_set1_ps(args.softcap));
        }
        highest = _mm512_mask_max_ps(highest, masks[v], highest, scores[v]);
    }
    float& maximum = sums.maximum[row * sums.stride];
    const float raised = __builtin_fmaxf(maximum, _mm512_reduce_max_ps(highest));
    const float scale = exp_scalar(maximum - raised);
    maximum = raised;
    T* p = s.p + row * kTileKeys;
    __m512 weight = _mm512_setzero_ps();
    for (int64_t v = 0; v < vectors; ++v) {
        const __m512 shifted = _mm512_sub_ps(scores[v], _mm512_set1_ps(raised));
        const __m512 e = _mm512_maskz_mov_ps(masks[v], exp(shifted));
        store(p + v * kLanes, e, __mmask16(0xffff));
        weight = _mm512_add_ps(weight, rounded(p, e));
    }
    float& total = sums.weight[row * sums.stride];
    total = total * scale + _mm512_reduce_add_ps(weight);
    if (scale == 1.0f) return;
    float* values = sums.values + row * sums.stride;
    for (int64_t i = 0; i < sums.stride - kLanes; i += kLanes) {
        _mm512_storeu_ps(values + i, _mm512_mul_ps(load(values + i), _mm512_set1_ps(scale)));
    }
}

template <class T>
void add_values(const AttentionArgs& args, const Scratch<T>& s, int64_t rows, int64_t keys) {
    const int64_t dim = round_up(args.kv_shape.head_dim, kLanes);
    const T* panel = s.v;
    for (int64_t first = 0; first < dim; first += kPanelRows) {
        const int64_t width = dim - first < kPanelRows ? dim - first : kPanelRows;
        tile_block<T>({.a = s.p,
                       .a_stride = kTileKeys,
                       .b = panel,
                       .k = keys,
                       .c = s.split.values + first,
                       .c_stride = s.split.stride,
                       .accumulate = true},
                      rows, width / kLanes);
        panel += keys * width;
    }
}

// Adds the keys [begin, begin + 64) that the item sees to s.split.
template <class T>
void run_tile(const AttentionArgs& args, const Item& item, const Scratch<T>& s, int64_t begin) {
    const int64_t left = item.keys.end - begin;
    const int64_t width = round_up(left < kTileKeys ? left : kTileKeys, kLanes);
    const int64_t rows = item.rows.end - item.rows.begin;
    const int64_t dim = args.kv_shape.head_dim;
    pack_keys(s.keys, dim, width, s.k);
    tile_block<T>({.a = s.q,
                   .a_stride = dim,
                   .b = s.k,
                   .k = dim,
                   .c = s.scores,
                   .c_stride = kTileKeys,
                   .accumulate = false},
                  rows, width / kLanes);
    for (int64_t row = 0; row < rows; ++row) {
        const Range seen = visible_keys(args, item.sequence, item.rows.begin + row);
        weigh_row(args, s, row, {seen.begin - begin, seen.end - begin}, width / kLanes);
    }
    pack_values(args, s.keys, width, s.v);
    add_values(args, s, rows, width);
}

template <class T>
void run_split(const AttentionArgs& args, const Item& item, Scratch<T>& s, Range keys) {
    const int64_t rows = item.rows.end - item.rows.begin;
    clear(s.split, rows, s.split.stride - kLanes);
    const int64_t first = keys.begin / kTileKeys * kTileKeys;
    for (int64_t begin = first; begin < keys.end; begin += kTileKeys) {
        find_keys(args, item, begin, s.keys);
        run_tile(args, item, s, begin);
    }
}

template <class T>
void run_item(const AttentionArgs& args, const Item& item, Scratch<T>& s, float* partials) {
    const int64_t rows = item.rows.end - item.rows.begin;
    const int64_t dim = s.total.stride - kLanes;
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
    clear(s.total, rows, dim);
    for (int64_t begin = item.keys.begin; begin < item.keys.end;) {
        const int64_t next = (begin / kSplitKeys + 1) * kSplitKeys;
        const Range keys{begin, next < item.keys.end ? next : item.keys.end};
        run_split(args, item, s, keys);
        for (int64_t row = 0; row < rows; ++row) merge_row(s.split, s.total, row, dim);
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
    const int64_t dim = s.total.stride - kLanes;
    const int64_t threads = thread_count();
    visit_items(args, [&](const Item& item) {
        if (item.partial < 0) return;
        char* memory = reinterpret_cast<char*>(partials + item.partial);
        const Sums split = carve_sums(&memory, item.rows.end, s.total.stride);
        const Range all = item_keys(args, item.sequence, item.rows);
        const int64_t turn = item.sequence.index + item.kv_head;
        for (int64_t row = 0; row < item.rows.end; ++row) {
            if ((turn + row) % threads != thread) continue;
            if (item.keys.begin == all.begin) clear_row(s.total, row, dim);
            merge_row(split, s.total, row, dim);
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
