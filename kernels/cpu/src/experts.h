// A mixture of experts: which rows each gets, their products with its weight, and the sum of what
// comes back. Products are those of any instruction set, on one thread a piece.
#pragma once

#include "kernels.h"

namespace hal::cpu {

// logits: of a router, with the same bits for a token whatever is multiplied beside it.
struct Products {
    void (*logits)(const LinearArgs&);
    void (*linear)(const LinearArgs&);
    void (*quantized_linear)(const QuantizedLinearArgs&);
};

// Weights of equal shape, expert_bytes apart: packed, or of codes where is_quantized.
struct ExpertWeights {
    const void* first;
    int64_t expert_bytes;
    bool is_quantized;
    PackedShape packed;
    QuantizedShape codes;

    constexpr int64_t n() const { return is_quantized ? codes.n : packed.n; }
    constexpr int64_t k() const { return is_quantized ? codes.k : packed.k; }
};

// The op route_experts of hal/opset/moe.py: chooses top_k experts for each token, and groups the
// choices by expert.
struct RouteArgs {
    const float* logits;  // [num_tokens, num_experts]
    int64_t num_tokens;
    int64_t num_experts;
    int64_t top_k;
    bool norm_topk_prob;
    float* weights;    // [num_tokens, top_k]
    int32_t* slots;    // [num_tokens, top_k]
    int32_t* rows;     // [num_tokens * top_k]
    int32_t* offsets;  // [num_experts + 1]
    int num_threads;
};
void route_experts(const RouteArgs& args);

// Rows offsets[e] to offsets[e + 1] of the output are those of expert e. Each piece of work is a
// run of one expert's weight rows with all of its tokens, so that a weight is read once.
struct GroupedArgs {
    const void* x;
    DType dtype;
    int64_t x_stride;
    const int32_t* rows;  // nullable: of x, for each row of the output; ascending for one expert
    const int32_t* offsets;
    int64_t num_experts;
    ExpertWeights weights;
    LinearOutput output;
    Products products;
    int num_threads;
};
void grouped_linear(const GroupedArgs& args);

// out[t] = sum over j of weights[t, j] * y[slots[t, j]], in float32 from the first j.
struct CombineArgs {
    const void* y;
    int64_t y_stride;
    const int32_t* slots;
    const float* weights;
    int64_t num_tokens;
    int64_t top_k;
    int64_t width;
    void* out;
    int64_t out_stride;
    DType dtype;
    int num_threads;
};
void combine_experts(const CombineArgs& args);

// The whole block, one step behind the other; buffers are as the steps above have them.
struct MoeArgs {
    const void* x;
    DType dtype;
    int64_t x_stride;
    int64_t num_tokens;
    const void* router;  // packed [num_experts, hidden]
    int64_t num_experts;
    int64_t top_k;
    bool norm_topk_prob;
    ExpertWeights up;  // gate and up alternating
    ExpertWeights down;
    Activation activation;
    float* logits;
    float* weights;
    int32_t* slots;
    int32_t* rows;
    int32_t* offsets;
    void* activated;  // [num_tokens * top_k, intermediate]
    void* y;          // [num_tokens * top_k, hidden]
    void* out;
    int64_t out_stride;
    Products products;
    int num_threads;
};
void moe(const MoeArgs& args);

}  // namespace hal::cpu
