// The part of bind.cpp that calls the products of experts.
#pragma once

#include "bind_launch.h"
#include "bind_types.h"
#include "experts.h"

namespace hal::cpu {
namespace {

// codes below 0: the weights are packed.
ExpertWeights expert_weights(Address first, int64_t expert_bytes, int64_t n, int64_t k, int dtype,
                             int64_t group, bool has_zeros, int codes) {
    return {.first = at(first),
            .expert_bytes = expert_bytes,
            .is_quantized = codes >= 0,
            .packed = packed_shape(n, k, dtype),
            .codes = {n, k, group, has_zeros, static_cast<Codes>(codes < 0 ? 0 : codes)}};
}

void call_grouped_linear(Products products, Address x, int dtype, int64_t x_stride, Address offsets,
                         int64_t num_experts, Address weight, int64_t expert_bytes, int64_t n,
                         int64_t k, int64_t group, bool has_zeros, int codes, Address out,
                         int64_t out_stride, int num_threads) {
    launch(&grouped_linear, {.x = at(x),
                             .dtype = dtype_of(dtype),
                             .x_stride = x_stride,
                             .rows = nullptr,
                             .offsets = at<int32_t>(offsets),
                             .num_experts = num_experts,
                             .weights = expert_weights(weight, expert_bytes, n, k, dtype, group,
                                                       has_zeros, codes),
                             .output = {.n = n,
                                        .bias = nullptr,
                                        .bias_dtype = dtype_of(dtype),
                                        .out = at(out),
                                        .dtype = dtype_of(dtype),
                                        .stride = out_stride,
                                        .activation = Activation::kNone,
                                        .gated = false},
                             .products = products,
                             .num_threads = num_threads});
}

void call_moe(Products products, Address x, int dtype, int64_t x_stride, int64_t num_tokens,
              Address router, int64_t num_experts, int64_t top_k, bool norm_topk_prob,
              int64_t hidden, int64_t intermediate, Address up, int64_t up_bytes, Address down,
              int64_t down_bytes, int64_t group, bool has_zeros, int codes, int activation,
              Address logits, Address weights, Address slots, Address rows, Address offsets,
              Address activated, Address y, Address out, int64_t out_stride, int num_threads) {
    const auto experts = [&](Address first, int64_t expert_bytes, int64_t n, int64_t k) {
        return expert_weights(first, expert_bytes, n, k, dtype, group, has_zeros, codes);
    };
    launch(&moe, {.x = at(x),
                  .dtype = dtype_of(dtype),
                  .x_stride = x_stride,
                  .num_tokens = num_tokens,
                  .router = at(router),
                  .num_experts = num_experts,
                  .top_k = top_k,
                  .norm_topk_prob = norm_topk_prob,
                  .up = experts(up, up_bytes, 2 * intermediate, hidden),
                  .down = experts(down, down_bytes, hidden, intermediate),
                  .activation = static_cast<Activation>(activation),
                  .logits = at<float>(logits),
                  .weights = at<float>(weights),
                  .slots = at<int32_t>(slots),
                  .rows = at<int32_t>(rows),
                  .offsets = at<int32_t>(offsets),
                  .activated = at(activated),
                  .y = at(y),
                  .out = at(out),
                  .out_stride = out_stride,
                  .products = products,
                  .num_threads = num_threads});
}

}  // namespace
}  // namespace hal::cpu
