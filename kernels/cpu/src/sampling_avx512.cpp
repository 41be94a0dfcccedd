#include "simd_avx512.h"

namespace hal::cpu {
namespace {

int32_t argmax_row(const float* logits, int64_t vocab) {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    __m512 best = lowest;
    __m512i best_id = _mm512_setzero_si512();
    __mmask16 has_nan = 0;
    __m512i id = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = 0; i < vocab; i += kLanes) {
        const __m512 v = _mm512_mask_loadu_ps(lowest, tail_mask(vocab - i), logits + i);
        const __mmask16 better = _mm512_cmp_ps_mask(v, best, _CMP_GT_OQ);
        has_nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        best = _mm512_mask_mov_ps(best, better, v);
        best_id = _mm512_mask_mov_epi32(best_id, better, id);
        id = _mm512_add_epi32(id, _mm512_set1_epi32(kLanes));
    }
    const float highest = _mm512_reduce_max_ps(best);
    if (has_nan != 0 || !__builtin_isfinite(highest)) return -1;
    const __mmask16 winners = _mm512_cmp_ps_mask(best, _mm512_set1_ps(highest), _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(winners, best_id);
}

}  // namespace

void argmax(const ArgmaxArgs& args) {
#pragma omp parallel for num_threads(args.num_threads) schedule(static) if (args.rows > 1)
    for (int64_t row = 0; row < args.rows; ++row) {
        args.out[row] = argmax_row(args.logits + row * args.stride, args.vocab);
    }
}

}  // namespace hal::cpu
