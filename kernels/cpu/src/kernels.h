// Entry points of the native CPU kernels. Plain pointers and sizes: no torch, no Python.
// All strides count elements. Every function is deterministic: results never depend on num_threads.
#pragma once

#include <cstdint>

namespace hal::cpu {

// A function of a type that files for several instruction sets use: were it called in one of them,
// the linker might keep that copy for all.
#define HAL_INLINE [[gnu::always_inline]]

struct Bf16 {
    uint16_t bits;
};

enum class DType : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kInt8 = 3 };

enum class Activation : int { kNone = 0, kSilu = 1, kGeluTanh = 2, kGelu = 3, kRelu = 4 };

// Rows are packed in panels of 64 so that one panel is one linear stream of memory.
inline constexpr int64_t kPanelRows = 64;
inline constexpr int64_t kLanes = 16;

// Elements of K that share one 32-bit lane: a pair of bfloat16 (vdpbf16ps) or one float32.
constexpr int64_t lane_step(DType dtype) { return dtype == DType::kBfloat16 ? 2 : 1; }

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Geometry of a packed weight: [ceil(n/64)][ceil(k/step)][width][step]. width is 64, except that
// the last panel is only as wide as its rows need (a multiple of 16).
struct PackedShape {
    int64_t n;
    int64_t k;
    DType dtype;

    constexpr int64_t step() const { return lane_step(dtype); }
    constexpr int64_t units() const { return ceil_div(k, step()); }
    constexpr int64_t num_panels() const { return ceil_div(n, kPanelRows); }
    constexpr int64_t panel_width(int64_t panel) const {
        const int64_t rows = round_up(n, kLanes) - panel * kPanelRows;
        return rows < kPanelRows ? rows : kPanelRows;
    }
    constexpr int64_t panel_offset(int64_t panel) const {
        return panel * kPanelRows * units() * step();
    }
    // Element index of (row, 0); consecutive units of this row are panel_width * step apart.
    constexpr int64_t row_offset(int64_t row) const {
        return panel_offset(row / kPanelRows) + (row % kPanelRows) * step();
    }
};

// Writes source rows as rows first_row.. of a packed weight. Padding is not written: where n or k
// is not a multiple of its unit, the caller zeroed the memory.
// gated: the rows are a gate half, then an up half; both are packed alternating every 16 rows, so
// that they meet in neighbouring registers. n must be a multiple of 32.
struct PackArgs {
    const void* src;
    DType src_dtype;
    int64_t src_stride;
    int64_t rows;
    void* dst;
    PackedShape shape;
    int64_t first_row;
    bool gated;
    int num_threads;
};
void pack_rows(const PackArgs& args);

// out[i] = packed row ids[i], i.e. an embedding look-up in a weight shared with the logits. An id
// outside the matrix gives NaN, which fails its request further on instead of the process here.
struct PackedGatherArgs {
    const void* weight;
    PackedShape shape;
    const int32_t* ids;
    int64_t num_ids;
    void* out;  // the weight's dtype
    int64_t out_stride;
    int num_threads;
};
void gather_packed_rows(const PackedGatherArgs& args);

// out[m, n] = activation(sum + bias[n]) of a product's sums; gated: out[m, n / 2] =
// activation(gate) * up.
struct LinearOutput {
    int64_t n;
    const void* bias;  // nullable; in packed row order
    DType bias_dtype;
    void* out;
    DType dtype;
    int64_t stride;
    Activation activation;
    bool gated;
};

// RMS norm, or layer norm when `layer_norm`. With residual: residual += x first, and the norm is
// of the sum as stored (rounded to its dtype).
struct NormArgs {
    const void* x;
    int64_t x_stride;
    void* residual;  // nullable
    int64_t residual_stride;
    const void* weight;
    const void* bias;  // nullable
    void* out;
    int64_t out_stride;
    int64_t rows;
    int64_t hidden;
    float eps;
    bool layer_norm;
    DType dtype;
    int num_threads;
};
void norm(const NormArgs& args);

// Sums of x[m, k] . weight[n, k] in float32 along k, in one chain whatever m is.
struct LinearArgs {
    const void* x;  // the weight's dtype
    int64_t x_stride;
    int64_t m;
    const void* weight;
    PackedShape shape;
    LinearOutput output;
    int num_threads;
    const NormArgs* norm = nullptr;  // whose `out` is x: rows are normed right before they are read
};
void linear(const LinearArgs& args);
void linear_amx(const LinearArgs& args);  // bfloat16, no norm; few tokens by linear()

// What reads a weight of codes: products of whole numbers, or those that decode it to floats.
enum class Codes : int { kDots = 0, kDecoded = 1, kDecodedFp8 = 2 };

// Geometry of a weight of codes (hal/weights.py defines them): strips of 16 rows, each one linear
// stream of memory in which scales stand right before their codes, 64 bytes of codes at a time.
//   8 bits: 16 scales in float32, then codes of 4 columns in every 64 bytes
//   4 bits: for every two groups, 2 x 16 scales in bfloat16, then codes of 8 columns in every 64
//           bytes; k is rounded up to 32. With zero points, for every four groups: 4 x 16 scales,
//           4 x 16 bytes of zero points, then the codes.
// Within 64 bytes, for dots: [16 rows][4] of code + 128, which feeds one vpdpbusd of 16 rows; or of
// code + 8 (or + zero point), columns 0 to 3 in the low halves and 4 to 7 in the high ones, which
// feeds two. vpdpbusd multiplies unsigned by signed bytes, so the offset of the codes adds offset *
// sum(x) to each dot: sums start at its negative, which the rounding of x yields on the way.
// Within 64 bytes, decoded: of 8 bits, a sign and a magnitude in int8 as in fp8, of every 4 rows
// columns 0 and 1 of each, then 2 and 3 of each; of 4 bits, in the 32 of a row even columns in the
// low word and odd ones in the high word, of code + 8 or + zero point.
struct QuantizedShape {
    int64_t n;
    int64_t k;
    int64_t group;  // columns under one scale in int4: 32, 64 or 128; 0: int8, one scale for a row
    bool has_zeros = false;
    Codes codes = Codes::kDots;

    constexpr bool is_int4() const { return group != 0; }
    // What a dot starts with for every unit of sum(x); with zero points it is multiplied by them.
    constexpr int64_t offset() const { return has_zeros ? 1 : is_int4() ? 8 : 128; }
    // Groups whose scales (and zero points) stand together, and their bytes.
    constexpr int64_t header_groups() const { return has_zeros ? 4 : 2; }
    constexpr int64_t header_bytes() const { return has_zeros ? 192 : 64; }
    // Groups of 4 columns, which is what one lane of vpdpbusd sums.
    HAL_INLINE constexpr int64_t units() const { return is_int4() ? 8 * ceil_div(k, 32) : ceil_div(k, 4); }
    // Scales of a row, and of a row of x.
    constexpr int64_t groups() const { return is_int4() ? ceil_div(k, group) : 1; }
    constexpr int64_t x_groups() const { return is_int4() ? ceil_div(k, 32) : 1; }
    constexpr int64_t num_strips() const { return ceil_div(n, kLanes); }
    // Where things stand in a strip, in bytes: the scales of a group, its zero points, and the
    // codes of an even unit.
    HAL_INLINE constexpr int64_t header_at(int64_t index) const {
        return index / header_groups() * (header_bytes() + 8 * header_groups() * group);
    }
    HAL_INLINE constexpr int64_t scales_at(int64_t index) const {
        return header_at(index) + index % header_groups() * 2 * kLanes;
    }
    HAL_INLINE constexpr int64_t zeros_at(int64_t index) const {
        return header_at(index) + (2 * header_groups() + index % header_groups()) * kLanes;
    }
    HAL_INLINE constexpr int64_t codes_at(int64_t unit) const {
        if (!is_int4()) return 64 * (unit + 1);
        return header_bytes() * (4 * unit / (header_groups() * group) + 1) + 32 * unit;
    }
    HAL_INLINE constexpr int64_t strip_bytes() const {
        if (!is_int4()) return codes_at(units());
        return header_bytes() * ceil_div(groups(), header_groups()) + 32 * units();
    }
    // Of x rounded to codes: the codes, and for each group a scale and minus the offset's share.
    constexpr int64_t x_row_bytes() const { return 4 * units() + 8 * x_groups(); }
};

// As PackArgs, rounding to codes on the way. Whole rows are written, with their padding. Returns
// the number of rows with a value that is not finite, whose codes mean nothing.
struct QuantizeArgs {
    const void* src;
    DType src_dtype;
    int64_t src_stride;
    int64_t rows;
    void* dst;
    QuantizedShape shape;
    int64_t first_row;
    bool gated;
    int num_threads;
};
int64_t quantize_rows(const QuantizeArgs& args);

// As PackedGatherArgs: out[i] = code * scale of row ids[i].
struct QuantizedGatherArgs {
    const void* weight;
    QuantizedShape shape;
    const int32_t* ids;
    int64_t num_ids;
    void* out;
    DType out_dtype;
    int64_t out_stride;
    int num_threads;
};
void gather_quantized_rows(const QuantizedGatherArgs& args);

// As LinearArgs, by a weight of codes, each group's dots scaled and added in float32 along k,
// whatever m is. For dots, x is rounded to codes first and a group's are exact; decoded codes are
// multiplied as floats by x as it is, each group's in one chain along k.
struct QuantizedLinearArgs {
    const void* x;
    DType x_dtype;
    int64_t x_stride;
    int64_t m;
    const void* weight;
    QuantizedShape shape;
    void* scratch;  // m rows of x_row_bytes(); decoded: of x, padded to 4 * units()
    LinearOutput output;
    int num_threads;
    const NormArgs* norm = nullptr;  // as in LinearArgs
};
void quantized_linear(const QuantizedLinearArgs& args);
void quantized_linear_amx(const QuantizedLinearArgs& args);  // no norm; few by quantized_linear()
void decoded_linear(const QuantizedLinearArgs& args);

// gated: out[t, i] = activation(x[t, i]) * x[t, size + i]; else out[t, i] = activation(x[t, i]).
struct ActivationArgs {
    const void* x;
    int64_t x_stride;
    void* out;
    int64_t out_stride;
    int64_t rows;
    int64_t size;  // columns of out
    Activation activation;
    bool gated;
    DType dtype;
    int num_threads;
};
void activate(const ActivationArgs& args);

// A paged cache [num_blocks][num_kv_heads][block_size / 16] of strips. A strip is what one KV head
// keeps of 16 tokens, one linear stream of memory in the order in which attention multiplies it:
//   K [head_dim / step][16 tokens][step], V [16 / step][head_dim][step], where step elements fill a
//   dword; of codes (hal/kv.py defines them) then 16 scales of K and 16 of V, in bfloat16.
// So a 64-byte load of either feeds one product of 16 lanes, whatever the type. K holds code + 128,
// because vpdpbusd multiplies unsigned by signed bytes.
struct KvShape {
    int64_t num_kv_heads;
    int64_t block_size;  // a multiple of 16
    int64_t head_dim;    // a multiple of step()
    DType dtype;         // kInt8: codes

    constexpr int64_t step() const {
        return dtype == DType::kInt8 ? 4 : dtype == DType::kBfloat16 ? 2 : 1;
    }
    constexpr int64_t side_bytes() const { return 4 * kLanes / step() * head_dim; }
    constexpr int64_t scales_bytes() const { return dtype == DType::kInt8 ? 4 * kLanes : 0; }
    constexpr int64_t strip_bytes() const { return 2 * side_bytes() + scales_bytes(); }
    // Where the strip with token `offset` of a block begins, in bytes.
    constexpr int64_t strip(int64_t block, int64_t head, int64_t offset) const {
        const int64_t first = (block * num_kv_heads + head) * (block_size / kLanes);
        return (first + offset / kLanes) * strip_bytes();
    }
};

// On qkv rows [q heads | k heads | v heads], in place: norms each q and k head where weights are
// given, then rotates their first rotary_dim elements, pairing i with i + rotary_dim / 2.
struct RopeArgs {
    void* qkv;
    int64_t qkv_stride;
    int64_t num_tokens;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    const int32_t* positions;
    const float* cos_sin;  // [max_position, rotary_dim]: cosines, then sines
    int64_t rotary_dim;    // 0: no rotation
    const void* q_norm;    // nullable, [head_dim]
    const void* k_norm;
    float eps;
    DType dtype;
    int num_threads;
};
void qk_norm_rope(const RopeArgs& args);

// Stores the k and v heads of qkv rows in the cache at slot_mapping (block * block_size + offset),
// rounded to codes where it holds those.
struct WriteKvArgs {
    const void* qkv;
    int64_t qkv_stride;
    int64_t num_tokens;
    int64_t num_heads;
    void* kv;
    KvShape kv_shape;
    const int64_t* slot_mapping;
    DType dtype;
    int num_threads;
};
void write_kv(const WriteKvArgs& args);

// Both, of the same rows.
struct NewTokens {
    RopeArgs rope;
    WriteKvArgs write;
};
// Tokens [first, end), by the calling thread.
void rope_and_write_kv(const NewTokens& tokens, int64_t first, int64_t end);

// Causal attention of the new tokens of each sequence (prefill, chunk or decode alike) over its
// paged cache, which holds them already, or gets them of `new_tokens` right before they are read.
// Over codes, queries and softmax weights are rounded to 16 bits, so that products are whole numbers.
struct AttentionArgs {
    const void* q;  // [num_tokens, num_heads, head_dim], tokens q_stride apart
    int64_t q_stride;
    const void* kv;
    KvShape kv_shape;
    void* out;
    int64_t out_stride;
    const int32_t* cu_seqlens_q;  // [num_seqs + 1]
    const int32_t* seq_lens;      // [num_seqs], with the new tokens
    const int32_t* block_table;   // [num_seqs, block_table_stride]
    int64_t block_table_stride;
    int64_t num_seqs;
    int64_t num_heads;
    float scale;
    float softcap;   // 0: none
    int64_t window;  // 0: none; else a query sees itself and window - 1 tokens before it
    DType dtype;     // of q and out
    int num_threads;
    const NewTokens* new_tokens = nullptr;
};
void attention(const AttentionArgs& args);

// As sample() of sampling_row.h takes them.
struct SampleArgs {
    const float* logits;
    int64_t stride;
    int64_t rows;
    int64_t vocab;
    const float* temperature;  // nullable: all rows greedy, and none of the following is read
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const int64_t* seeds;
    const int32_t* token_index;
    bool has_filters;  // false: top_k, top_p and min_p of every row are off
    int32_t* tokens;
    int num_threads;
};

// logits[rows[m], id] = -inf where bit id % 32 of mask[m, id / 32] is 0.
struct MaskArgs {
    float* logits;
    int64_t stride;
    int64_t vocab;
    const int32_t* rows;
    int64_t num_rows;
    const uint32_t* mask;
    int64_t mask_stride;  // words
    int num_threads;
};
void mask_logits(const MaskArgs& args);

// out[i] = table[ids[i]], rows of row_bytes bytes; all bits set, which is NaN, where there is none.
struct GatherArgs {
    const void* table;
    int64_t num_rows;
    int64_t table_stride_bytes;
    const int32_t* ids;
    int64_t num_ids;
    void* out;
    int64_t out_stride_bytes;
    int64_t row_bytes;
    int num_threads;
};
void gather_rows(const GatherArgs& args);

// Of ids, those from first on, count of them, are this rank's. out[t] = ids[t] - first, else 0.
struct OwnTokensArgs {
    const int32_t* ids;
    int64_t num_ids;
    int32_t first;
    int32_t count;
    int32_t* out;
    int num_threads;
};
void own_tokens(const OwnTokensArgs& args);

// All bits of the rows that are not this rank's become 0.
struct ZeroOtherRowsArgs {
    const int32_t* ids;
    int64_t num_ids;
    int32_t first;
    int32_t count;
    void* out;
    int64_t out_stride_bytes;
    int64_t row_bytes;
    int num_threads;
};
void zero_other_rows(const ZeroOtherRowsArgs& args);

// out[t] = token_ids[t], or last_tokens[slots[t]] where that is negative.
struct TakeTokensArgs {
    const int32_t* token_ids;
    const int32_t* slots;
    const int32_t* last_tokens;
    int64_t num_tokens;
    int32_t* out;
    int num_threads;
};
void take_tokens(const TakeTokensArgs& args);

// last_tokens[slots[i]] = tokens[i].
struct KeepTokensArgs {
    const int32_t* tokens;
    const int32_t* slots;
    int64_t num_tokens;
    int32_t* last_tokens;
    int num_threads;
};
void keep_tokens(const KeepTokensArgs& args);

}  // namespace hal::cpu
