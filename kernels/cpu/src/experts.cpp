#include "experts.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "arena.h"
#include "threads.h"

namespace hal::cpu {
namespace {

constexpr int64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// What a thread gathers for one product, and what it rounds, stays in its L2.
constexpr int64_t kBytesAtOnce = 1 << 20;
constexpr int64_t kFewestAtOnce = 16;

// An expert with fewer rows costs about as much as one with so many: its weight is read.
constexpr int64_t kLeastRows = 16;

// The largest logit behind (value, expert) in the order of the choice: falling, of equal ones the
// lower expert first.
int64_t next_choice(const float* logits, int64_t num_experts, float value, int64_t expert) {
    int64_t best = -1;
    for (int64_t e = 0; e < num_experts; ++e) {
        const bool is_left = logits[e] < value || (logits[e] == value && e > expert);
        if (is_left && (best < 0 || logits[e] > logits[best])) best = e;
    }
    return best;
}

// A token without finite weights still gets experts: its rows must have a place.
void give_up(const RouteArgs& args, int64_t token) {
    for (int64_t j = 0; j < args.top_k; ++j) {
        args.weights[token * args.top_k + j] = std::numeric_limits<float>::quiet_NaN();
        args.slots[token * args.top_k + j] = int32_t(j);
    }
}

// Weights of a token, and its experts in place of its slots.
void choose(const RouteArgs& args, int64_t token) {
    const float* logits = args.logits + token * args.num_experts;
    float* weights = args.weights + token * args.top_k;
    int32_t* experts = args.slots + token * args.top_k;
    float largest = logits[0], total = 0.0f;
    for (int64_t e = 1; e < args.num_experts; ++e) {
        if (logits[e] > largest) largest = logits[e];
    }
    for (int64_t e = 0; e < args.num_experts; ++e) total += std::exp(logits[e] - largest);
    if (!(total < std::numeric_limits<float>::infinity())) return give_up(args, token);
    float value = std::numeric_limits<float>::infinity(), chosen = 0.0f;
    int64_t expert = -1;
    for (int64_t j = 0; j < args.top_k; ++j) {
        expert = next_choice(logits, args.num_experts, value, expert);
        value = logits[expert];
        experts[j] = int32_t(expert);
        weights[j] = std::exp(value - largest) / total;
        chosen += weights[j];
    }
    if (!args.norm_topk_prob) return;
    for (int64_t j = 0; j < args.top_k; ++j) weights[j] /= chosen;
}

// Experts in place of slots become slots. While rows are given out, offsets[e + 1] is the next one
// of expert e; in the end that is where the next expert begins.
void group(const RouteArgs& args) {
    const int64_t num_choices = args.num_tokens * args.top_k;
    int32_t* next = args.offsets + 1;
    for (int64_t e = 0; e <= args.num_experts; ++e) args.offsets[e] = 0;
    for (int64_t i = 0; i < num_choices; ++i) ++next[args.slots[i]];
    int32_t first = 0;
    for (int64_t e = 0; e < args.num_experts; ++e) {
        const int32_t count = next[e];
        next[e] = first;
        first += count;
    }
    for (int64_t i = 0; i < num_choices; ++i) {
        const int32_t slot = next[args.slots[i]]++;
        args.slots[i] = slot;
        args.rows[slot] = int32_t(i / args.top_k);
    }
}

struct Piece {
    int64_t expert;
    Range panels;  // of 64 weight rows
};

struct Rows {
    const void* first;
    int64_t stride;
};

class GroupedProduct {
  public:
    explicit GroupedProduct(const GroupedArgs& args) : args_(args) {}

    // Cuts the weights of busy experts, those with many rows into more pieces than others.
    void cut(std::vector<Piece>& pieces) const {
        const int64_t panels = ceil_div(args_.weights.n(), kPanelRows);
        int64_t total = 0;
        for (int64_t e = 0; e < args_.num_experts; ++e) total += cost(e);
        for (int64_t e = 0; e < args_.num_experts; ++e) {
            if (cost(e) == 0) continue;
            const int64_t wanted = ceil_div(chunks_for(args_.num_threads, panels * total) * cost(e),
                                            total);
            const int64_t parts = wanted < panels ? wanted : panels;
            for (int64_t i = 0; i < parts; ++i) pieces.push_back({e, share(panels, i, parts)});
        }
    }

    void run(const Piece& piece) const {
        const int64_t end = args_.offsets[piece.expert + 1], most = rows_at_once();
        for (int64_t row = args_.offsets[piece.expert]; row < end; row += most) {
            multiply(piece, row, end - row < most ? end - row : most);
        }
    }

  private:
    int64_t cost(int64_t expert) const {
        const int64_t rows = args_.offsets[expert + 1] - args_.offsets[expert];
        return rows == 0 ? 0 : rows < kLeastRows ? kLeastRows : rows;
    }

    int64_t rows_at_once() const {
        const int64_t gathered = args_.weights.k() * element_bytes(args_.dtype);
        const int64_t bytes = scratch_row() > gathered ? scratch_row() : gathered;
        const int64_t fitting = kBytesAtOnce / bytes / kFewestAtOnce * kFewestAtOnce;
        return fitting > kFewestAtOnce ? fitting : kFewestAtOnce;
    }

    // Bytes of one row as its product reads it, where that is not as it is.
    int64_t scratch_row() const {
        const QuantizedShape& shape = args_.weights.codes;
        if (!args_.weights.is_quantized) return 0;
        if (shape.codes == Codes::kDots) return shape.x_row_bytes();
        return 4 * shape.units() * element_bytes(args_.dtype);
    }

    void multiply(const Piece& piece, int64_t row, int64_t m) const {
        const ExpertWeights& weights = args_.weights;
        const Rows x = gathered(row, m);
        const int64_t first = piece.panels.begin * kPanelRows;
        const int64_t last = piece.panels.end * kPanelRows;
        const int64_t n = (last < weights.n() ? last : weights.n()) - first;
        const char* weight =
            static_cast<const char*>(weights.first) + piece.expert * weights.expert_bytes;
        LinearOutput output = args_.output;
        output.n = n;
        output.out = static_cast<char*>(output.out) +
                     (row * output.stride + (output.gated ? first / 2 : first)) *
                         element_bytes(output.dtype);
        if (weights.is_quantized) {
            const QuantizedShape& whole = weights.codes;
            args_.products.quantized_linear(
                {.x = x.first,
                 .x_dtype = args_.dtype,
                 .x_stride = x.stride,
                 .m = m,
                 .weight = weight + first / kLanes * whole.strip_bytes(),
                 .shape = {n, whole.k, whole.group, whole.has_zeros, whole.codes},
                 .scratch = scratch(m),
                 .output = output,
                 .num_threads = 1});
        } else {
            const PackedShape& whole = weights.packed;
            const int64_t offset = whole.panel_offset(piece.panels.begin);
            args_.products.linear({.x = x.first,
                                   .x_stride = x.stride,
                                   .m = m,
                                   .weight = weight + offset * element_bytes(whole.dtype),
                                   .shape = {n, whole.k, whole.dtype},
                                   .output = output,
                                   .num_threads = 1});
        }
    }

    // Rows of x that stand together where they are, or copies of them that do.
    Rows gathered(int64_t row, int64_t m) const {
        const int64_t element = element_bytes(args_.dtype);
        const char* x = static_cast<const char*>(args_.x);
        if (args_.rows == nullptr) return {x + row * args_.x_stride * element, args_.x_stride};
        const int32_t* rows = args_.rows + row;
        if (rows[m - 1] - rows[0] == m - 1) {
            return {x + rows[0] * args_.x_stride * element, args_.x_stride};
        }
        static thread_local Arena arena;
        const int64_t k = args_.weights.k();
        char* copies = arena.reserve(m * k * element);
        for (int64_t i = 0; i < m; ++i) {
            std::memcpy(copies + i * k * element, x + rows[i] * args_.x_stride * element,
                        size_t(k * element));
        }
        return {copies, k};
    }

    void* scratch(int64_t m) const {
        static thread_local Arena arena;
        return arena.reserve(m * scratch_row());
    }

    const GroupedArgs& args_;
};

inline float widened(float value) { return value; }
inline float widened(Bf16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void round_to(float value, float* to) { *to = value; }
inline void round_to(float value, Bf16* to) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    to->bits = uint16_t((is_nan ? bits | 0x00400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Columns whose sums a thread holds at a time.
constexpr int64_t kColumns = 512;

template <class T>
void combine_columns(const CombineArgs& args, int64_t token, const Range& columns) {
    float sums[kColumns] = {};
    const int64_t count = columns.end - columns.begin;
    for (int64_t j = 0; j < args.top_k; ++j) {
        const float weight = args.weights[token * args.top_k + j];
        const int64_t row = args.slots[token * args.top_k + j];
        const T* y = static_cast<const T*>(args.y) + row * args.y_stride + columns.begin;
        for (int64_t i = 0; i < count; ++i) sums[i] += weight * widened(y[i]);
    }
    T* out = static_cast<T*>(args.out) + token * args.out_stride + columns.begin;
    for (int64_t i = 0; i < count; ++i) round_to(sums[i], out + i);
}

// Rows behind each other, as they come out of the product.
LinearOutput plain_output(int64_t n, void* out, DType dtype) {
    return {.n = n,
            .bias = nullptr,
            .bias_dtype = dtype,
            .out = out,
            .dtype = dtype,
            .stride = n,
            .activation = Activation::kNone,
            .gated = false};
}

void make_logits(const MoeArgs& args) {
    args.products.logits({.x = args.x,
                          .x_stride = args.x_stride,
                          .m = args.num_tokens,
                          .weight = args.router,
                          .shape = {args.num_experts, args.up.k(), args.dtype},
                          .output = plain_output(args.num_experts, args.logits, DType::kFloat32),
                          .num_threads = args.num_threads});
}

GroupedArgs up_of(const MoeArgs& args) {
    const int64_t intermediate = args.down.k();
    LinearOutput output = plain_output(2 * intermediate, args.activated, args.dtype);
    output.stride = intermediate;
    output.activation = args.activation;
    output.gated = true;
    return {.x = args.x,
            .dtype = args.dtype,
            .x_stride = args.x_stride,
            .rows = args.rows,
            .offsets = args.offsets,
            .num_experts = args.num_experts,
            .weights = args.up,
            .output = output,
            .products = args.products,
            .num_threads = args.num_threads};
}

GroupedArgs down_of(const MoeArgs& args) {
    return {.x = args.activated,
            .dtype = args.dtype,
            .x_stride = args.down.k(),
            .rows = nullptr,
            .offsets = args.offsets,
            .num_experts = args.num_experts,
            .weights = args.down,
            .output = plain_output(args.down.n(), args.y, args.dtype),
            .products = args.products,
            .num_threads = args.num_threads};
}

}  // namespace

void route_experts(const RouteArgs& args) {
    const bool is_enough = args.num_tokens * args.num_experts > 4096;
    for_each(args.num_threads, args.num_tokens, is_enough,
             [&](int64_t token) { choose(args, token); });
    group(args);
}

void grouped_linear(const GroupedArgs& args) {
    static thread_local std::vector<Piece> pieces;
    pieces.clear();
    const GroupedProduct product(args);
    product.cut(pieces);
    const Piece* first = pieces.data();
    for_each_chunk(args.num_threads, int64_t(pieces.size()),
                   [&](int64_t i) { product.run(first[i]); });
}

void combine_experts(const CombineArgs& args) {
    const int64_t parts = ceil_div(args.width, kColumns);
    const bool is_enough = args.num_tokens * args.top_k * args.width > 16384;
    for_each(args.num_threads, args.num_tokens * parts, is_enough, [&](int64_t i) {
        const int64_t first = i % parts * kColumns, end = first + kColumns;
        const Range columns{first, end < args.width ? end : args.width};
        if (args.dtype == DType::kBfloat16) {
            combine_columns<Bf16>(args, i / parts, columns);
        } else {
            combine_columns<float>(args, i / parts, columns);
        }
    });
}

void moe(const MoeArgs& args) {
    make_logits(args);
    route_experts({.logits = args.logits,
                   .num_tokens = args.num_tokens,
                   .num_experts = args.num_experts,
                   .top_k = args.top_k,
                   .norm_topk_prob = args.norm_topk_prob,
                   .weights = args.weights,
                   .slots = args.slots,
                   .rows = args.rows,
                   .offsets = args.offsets,
                   .num_threads = args.num_threads});
    grouped_linear(up_of(args));
    grouped_linear(down_of(args));
    combine_experts({.y = args.y,
                     .y_stride = args.down.n(),
                     .slots = args.slots,
                     .weights = args.weights,
                     .num_tokens = args.num_tokens,
                     .top_k = args.top_k,
                     .width = args.down.n(),
                     .out = args.out,
                     .out_stride = args.out_stride,
                     .dtype = args.dtype,
                     .num_threads = args.num_threads});
}

}  // namespace hal::cpu
