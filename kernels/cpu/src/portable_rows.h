// Kernels that work row by row: norms, activations, rotation, and the cache of rows.
#pragma once

#include "level.h"
#include "portable_lanes.h"

namespace hal::cpu {
namespace {

// Below this many elements waking a second thread costs more than it saves.
constexpr int64_t kParallelElements = 32768;

constexpr int64_t kMaxHeadDim = 512;

// The sum of term(i), kWidth values from column i on, over a row; 16 sums meet at its end.
template <class Term>
inline float sum_over(int64_t size, const Term& term) {
    Floats sums[kParts];
    for (Floats& sum : sums) sum = zeros();
    for (int64_t i = 0; i < size; i += kLanes) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts; ++p) sums[p] = sums[p] + term(i + p * kWidth);
    }
    alignas(64) float lanes[kLanes];
    for (int p = 0; p < kParts; ++p) store(lanes + p * kWidth, sums[p]);
    for (int step = kLanes / 2; step > 0; step /= 2) {
        for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    }
    return lanes[0];
}

template <class T>
inline float squares_about(const T* x, int64_t size, float mean) {
    return sum_over(size, [&](int64_t i) {
        const Ints v = as_ints(load(x + i, size - i) - splat(mean));
        const Floats inside = as_floats(bit_and(v, first_lanes(size - i)));
        return inside * inside;
    });
}

// residual[row] += x[row]; returns the row to be normed.
template <class T>
const T* add_residual(const NormArgs& args, int64_t row) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
    if (args.residual == nullptr) return x;
    T* residual = static_cast<T*>(args.residual) + row * args.residual_stride;
    for (int64_t i = 0; i < args.hidden; i += kWidth) {
        const int64_t left = args.hidden - i;
        store(residual + i, load(x + i, left) + load(residual + i, left), left);
    }
    return residual;
}

template <class T>
void norm_row(const NormArgs& args, int64_t row) {
    const T* x = add_residual<T>(args, row);
    const T* weight = static_cast<const T*>(args.weight);
    const T* bias = static_cast<const T*>(args.bias);
    T* out = static_cast<T*>(args.out) + row * args.out_stride;
    const int64_t size = args.hidden;
    const auto value = [&](int64_t i) { return load(x + i, size - i); };
    const float mean = args.layer_norm ? sum_over(size, value) / float(size) : 0.0f;
    const float variance = squares_about(x, size, mean) / float(size);
    const Floats inverse = splat(1.0f / __builtin_sqrtf(variance + args.eps));
    for (int64_t i = 0; i < size; i += kWidth) {
        const int64_t left = size - i;
        Floats v = (load(x + i, left) - splat(mean)) * inverse * load(weight + i, left);
        if (bias != nullptr) v = v + load(bias + i, left);
        store(out + i, v, left);
    }
}

void run_norm(const NormArgs& args) {
    const bool is_enough = args.rows * args.hidden >= kParallelElements;
    const auto run = args.dtype == DType::kBfloat16 ? norm_row<Bf16> : norm_row<float>;
    for_each(args.num_threads, args.rows, is_enough, [&](int64_t row) { run(args, row); });
}

template <class T>
void activate_row(const ActivationArgs& args, int64_t row) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
    T* out = static_cast<T*>(args.out) + row * args.out_stride;
    for (int64_t i = 0; i < args.size; i += kWidth) {
        const int64_t left = args.size - i;
        Floats v = activated(args.activation, load(x + i, left));
        if (args.gated) v = v * load(x + args.size + i, left);
        store(out + i, v, left);
    }
}

void run_activate(const ActivationArgs& args) {
    const bool is_enough = args.rows * args.size >= kParallelElements;
    const auto run = args.dtype == DType::kBfloat16 ? activate_row<Bf16> : activate_row<float>;
    for_each(args.num_threads, args.rows, is_enough, [&](int64_t row) { run(args, row); });
}

template <class T>
void norm_head(const T* weight, float eps, int64_t size, float* head) {
    const float mean = squares_about(head, size, 0.0f) / float(size);
    const Floats inverse = splat(1.0f / __builtin_sqrtf(mean + eps));
    for (int64_t i = 0; i < size; i += kWidth) {
        const int64_t left = size - i;
        store(head + i, load(head + i, left) * inverse * load(weight + i, left), left);
    }
}

template <class T>
void rope_head(const RopeArgs& args, const void* norm, const float* cos, T* x) {
    alignas(64) float head[kMaxHeadDim];
    const int64_t size = args.head_dim, half = args.rotary_dim / 2;
    for (int64_t i = 0; i < size; i += kWidth) store(head + i, load(x + i, size - i), size - i);
    if (norm != nullptr) norm_head(static_cast<const T*>(norm), args.eps, size, head);
    for (int64_t i = 0; i < half; i += kWidth) {
        const int64_t left = half - i;
        const Floats x1 = load(head + i, left), x2 = load(head + half + i, left);
        const Floats c = load(cos + i, left), s = load(cos + half + i, left);
        store(x + i, fma(x1, c, zeros() - x2 * s), left);
        store(x + half + i, fma(x2, c, x1 * s), left);
    }
    if (norm == nullptr) return;  // the rest is as it was
    for (int64_t i = 2 * half; i < size; i += kWidth) {
        store(x + i, load(head + i, size - i), size - i);
    }
}

template <class T>
void rope_token(const RopeArgs& args, int64_t token) {
    T* x = static_cast<T*>(args.qkv) + token * args.qkv_stride;
    const float* cos = args.cos_sin + args.positions[token] * args.rotary_dim;
    for (int64_t head = 0; head < args.num_heads + args.num_kv_heads; ++head) {
        const void* norm = head < args.num_heads ? args.q_norm : args.k_norm;
        rope_head(args, norm, cos, x + head * args.head_dim);
    }
}

void run_rope(const RopeArgs& args) {
    if (args.rotary_dim == 0 && args.q_norm == nullptr) return;
    const int64_t heads = args.num_heads + args.num_kv_heads;
    const bool is_enough = args.num_tokens * heads * args.head_dim >= kParallelElements;
    const auto run = args.dtype == DType::kBfloat16 ? rope_token<Bf16> : rope_token<float>;
    for_each(args.num_threads, args.num_tokens, is_enough,
             [&](int64_t token) { run(args, token); });
}

// The cache that LevelKernels::attention reads.
inline void write_kv_token(const WriteKvArgs& args, int64_t token) {
    const KvShape& shape = args.kv_shape;
    const int64_t element = args.dtype == DType::kBfloat16 ? 2 : 4;
    const int64_t head_bytes = shape.head_dim * element;
    const int64_t block = args.slot_mapping[token] / shape.block_size;
    const int64_t offset = args.slot_mapping[token] % shape.block_size;
    const char* from = static_cast<const char*>(args.qkv) + token * args.qkv_stride * element +
                       args.num_heads * head_bytes;
    for (int64_t head = 0; head < 2 * shape.num_kv_heads; ++head, from += head_bytes) {
        const int64_t row = (2 * block * shape.num_kv_heads + head) * shape.block_size + offset;
        __builtin_memcpy(static_cast<char*>(args.kv) + row * head_bytes, from, size_t(head_bytes));
    }
}

void run_write_kv(const WriteKvArgs& args) {
    const KvShape& shape = args.kv_shape;
    const int64_t elements = 2 * args.num_tokens * shape.num_kv_heads * shape.head_dim;
    for_each(args.num_threads, args.num_tokens, elements >= kParallelElements,
             [&](int64_t token) { write_kv_token(args, token); });
}

}  // namespace
}  // namespace hal::cpu
