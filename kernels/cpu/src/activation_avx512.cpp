#include "simd_avx512.h"

namespace hal::cpu {
namespace {

constexpr int64_t kParallelElements = 32768;

template <class T>
void activate_row(const ActivationArgs& args, int64_t row) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
    T* out = static_cast<T*>(args.out) + row * args.out_stride;
    for (int64_t i = 0; i < args.size; i += kLanes) {
        const __mmask16 mask = tail_mask(args.size - i);
        __m512 v = activated(args.activation, load(x + i, mask));
        if (args.gated) v = _mm512_mul_ps(v, load(x + args.size + i, mask));
        store(out + i, v, mask);
    }
}

}  // namespace

void activate(const ActivationArgs& args) {
    const bool is_enough = args.rows * args.size >= kParallelElements;
    for_each(args.num_threads, args.rows, is_enough, [&](int64_t row) {
        if (args.dtype == DType::kBfloat16) {
            activate_row<Bf16>(args, row);
        } else {
            activate_row<float>(args, row);
        }
    });
}

}  // namespace hal::cpu
