#include "kv_strips_avx512.h"

namespace hal::cpu {
namespace {

constexpr int64_t kMaxHeadDim = 512;
constexpr int64_t kParallelElements = 32768;

template <class T>
void widen_head(const T* x, int64_t size, float* head) {
    for (int64_t i = 0; i < size; i += kLanes) {
        const __mmask16 mask = tail_mask(size - i);
        store(head + i, load(x + i, mask), mask);
    }
}

template <class T>
void norm_head(const T* weight, float eps, int64_t size, float* head) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < size; i += kLanes) {
        const __m512 v = load(head + i, tail_mask(size - i));
        sum = _mm512_fmadd_ps(v, v, sum);
    }
    const float mean = _mm512_reduce_add_ps(sum) / float(size);
    const __m512 inverse = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
    for (int64_t i = 0; i < size; i += kLanes) {
        const __mmask16 mask = tail_mask(size - i);
        const __m512 v = _mm512_mul_ps(load(head + i, mask), inverse);
        store(head + i, _mm512_mul_ps(v, load(weight + i, mask)), mask);
    }
}

template <class T>
void rope_head(const RopeArgs& args, const void* norm, const float* cos, T* x) {
    alignas(64) float head[kMaxHeadDim];
    widen_head(x, args.head_dim, head);
    if (norm != nullptr) norm_head(static_cast<const T*>(norm), args.eps, args.head_dim, head);
    const int64_t half = args.rotary_dim / 2;
    for (int64_t i = 0; i < half; i += kLanes) {
        const __mmask16 mask = tail_mask(half - i);
        const __m512 x1 = load(head + i, mask);
        const __m512 x2 = load(head + half + i, mask);
        const __m512 c = load(cos + i, mask);
        const __m512 s = load(cos + half + i, mask);
        store(x + i, _mm512_fmsub_ps(x1, c, _mm512_mul_ps(x2, s)), mask);
        store(x + half + i, _mm512_fmadd_ps(x2, c, _mm512_mul_ps(x1, s)), mask);
    }
    if (norm == nullptr) return;  // the rest is as it was
    for (int64_t i = 2 * half; i < args.head_dim; i += kLanes) {
        const __mmask16 mask = tail_mask(args.head_dim - i);
        store(x + i, load(head + i, mask), mask);
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

void rope_any(const RopeArgs& args, int64_t token) {
    if (args.rotary_dim == 0 && args.q_norm == nullptr) return;
    if (args.dtype == DType::kBfloat16) {
        rope_token<Bf16>(args, token);
    } else {
        rope_token<float>(args, token);
    }
}

void write_token(const WriteKvArgs& args, int64_t token) {
    const KvShape& shape = args.kv_shape;
    const int64_t head_bytes = shape.head_dim * (args.dtype == DType::kBfloat16 ? 2 : 4);
    const int64_t block = args.slot_mapping[token] / shape.block_size;
    const int64_t offset = args.slot_mapping[token] % shape.block_size;
    const int64_t row_bytes = head_bytes / shape.head_dim * args.qkv_stride;
    const char* k = static_cast<const char*>(args.qkv) + token * row_bytes +
                    args.num_heads * head_bytes;
    const char* v = k + shape.num_kv_heads * head_bytes;
    for (int64_t head = 0; head < shape.num_kv_heads; ++head, k += head_bytes, v += head_bytes) {
        char* strip = static_cast<char*>(args.kv) + shape.strip(block, head, offset);
        const int64_t place = offset % kLanes;
        if (shape.dtype == DType::kInt8) {
            write_codes(shape, strip, place, {k, args.dtype, shape.head_dim},
                        {v, args.dtype, shape.head_dim});
        } else if (shape.dtype == DType::kBfloat16) {
            write_elements<Bf16>(shape, strip, place, k, v);
        } else {
            write_elements<float>(shape, strip, place, k, v);
        }
    }
}

}  // namespace

void qk_norm_rope(const RopeArgs& args) {
    const int64_t heads = args.num_heads + args.num_kv_heads;
    const bool is_enough = args.num_tokens * heads * args.head_dim >= kParallelElements;
    for_each(args.num_threads, args.num_tokens, is_enough,
             [&](int64_t token) { rope_any(args, token); });
}

void write_kv(const WriteKvArgs& args) {
    const KvShape& shape = args.kv_shape;
    const int64_t elements = 2 * args.num_tokens * shape.num_kv_heads * shape.head_dim;
    const bool is_enough = elements >= kParallelElements;
    for_each(args.num_threads, args.num_tokens, is_enough,
             [&](int64_t token) { write_token(args, token); });
}

void rope_and_write_kv(const NewTokens& tokens, int64_t first, int64_t end) {
    for (int64_t token = first; token < end; ++token) {
        rope_any(tokens.rope, token);
        write_token(tokens.write, token);
    }
}

}  // namespace hal::cpu
