#include "sampling_row.h"

#include "philox.h"
#include "simd_avx512.h"

namespace hal::cpu {
namespace {

// Scores come from float32 logarithms, off by less than 1e-5; whatever comes this close to the
// best so far is computed again in float64, as the reference does.
constexpr float kScoreMargin = 1e-3f;

struct PhiloxWords {
    __m512i word[4];
};

struct WideProduct {
    __m512i high;
    __m512i low;
};

inline WideProduct multiply(__m512i x, uint32_t factor) {
    const __m512i f = _mm512_set1_epi32(int(factor));
    const __m512i even = _mm512_mul_epu32(x, f);
    const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), f);
    return {_mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd),
            _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32))};
}

// The four words of 16 counters: word j of lane i belongs to id 4 * (group + i) + j.
inline PhiloxWords philox(const NoiseKey& key, __m512i groups) {
    __m512i c0 = groups;
    __m512i c1 = _mm512_set1_epi32(int(key.token_index));
    __m512i c2 = _mm512_setzero_si512();
    __m512i c3 = _mm512_setzero_si512();
    uint32_t k0 = uint32_t(key.seed);
    uint32_t k1 = uint32_t(key.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const WideProduct first = multiply(c0, kPhiloxMultiplier0);
        const WideProduct second = multiply(c2, kPhiloxMultiplier1);
        c0 = _mm512_xor_si512(_mm512_xor_si512(second.high, c1), _mm512_set1_epi32(int(k0)));
        c1 = second.low;
        c2 = _mm512_xor_si512(_mm512_xor_si512(first.high, c3), _mm512_set1_epi32(int(k1)));
        c3 = first.low;
        k0 += kPhiloxStep0;
        k1 += kPhiloxStep1;
    }
    return {{c0, c1, c2, c3}};
}

// log(1 + t) for t in [-0.3, 0.42], to 1e-7 of the result. Source: Cephes logf.
inline __m512 log_near_one(__m512 t) {
    constexpr float kCoefficients[] = {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f,
                                       1.4249322787e-1f,  -1.6668057665e-1f, 2.0000714765e-1f,
                                       -2.4999993993e-1f, 3.3333331174e-1f};
    __m512 p = _mm512_set1_ps(7.0376836292e-2f);
#pragma GCC unroll 8
    for (const float c : kCoefficients) p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(c));
    const __m512 square = _mm512_mul_ps(t, t);
    p = _mm512_mul_ps(_mm512_mul_ps(p, t), square);
    return _mm512_add_ps(t, _mm512_fmadd_ps(square, _mm512_set1_ps(-0.5f), p));
}

inline __m512 log(__m512 x) {
    __m512 mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    __m512 exponent = _mm512_getexp_ps(x);
    const __m512 one = _mm512_set1_ps(1.0f);
    const __mmask16 high = _mm512_cmp_ps_mask(mantissa, _mm512_set1_ps(1.41421356f), _CMP_GT_OQ);
    mantissa = _mm512_mask_mul_ps(mantissa, high, mantissa, _mm512_set1_ps(0.5f));
    exponent = _mm512_mask_add_ps(exponent, high, exponent, one);
    return _mm512_fmadd_ps(exponent, _mm512_set1_ps(0.693147181f),
                           log_near_one(_mm512_sub_ps(mantissa, one)));
}

// -log(-log(u)), u = (word + 0.5) / 2^32. Near u = 1, where the large noise is, from 1 - u, which
// float32 holds and u itself does not.
inline __m512 approximate_noise(__m512i word) {
    const __m512 half = _mm512_set1_ps(0.5f);
    const __m512 unit = _mm512_set1_ps(0x1p-32f);
    const __m512i inverted = _mm512_xor_si512(word, _mm512_set1_epi32(-1));
    const __m512 u = _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepu32_ps(word), half), unit);
    const __m512 rest = _mm512_mul_ps(_mm512_add_ps(_mm512_cvtepu32_ps(inverted), half), unit);
    const __mmask16 near = _mm512_cmp_ps_mask(rest, _mm512_set1_ps(0.25f), _CMP_LT_OQ);
    const __m512 zero = _mm512_setzero_ps();
    const __m512 inner =
        _mm512_mask_mov_ps(log(u), near, log_near_one(_mm512_sub_ps(zero, rest)));
    return _mm512_sub_ps(zero, log(_mm512_sub_ps(zero, inner)));
}

inline __m512 scaled(const ScaledRow& row, __m512 logits) {
    return _mm512_mul_ps(_mm512_sub_ps(logits, _mm512_set1_ps(row.maximum)),
                         _mm512_set1_ps(row.inverse_temperature));
}

inline __m512 scaled_at(const ScaledRow& row, int64_t i) {
    const __m512 none = _mm512_set1_ps(-__builtin_inff());
    return scaled(row, _mm512_mask_loadu_ps(none, tail_mask(row.vocab - i), row.logits + i));
}

inline __m512i lane_ids() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// The best token so far.
struct Draw {
    double score;
    int32_t id;
};

inline void consider(const ScaledRow& row, const NoiseKey& key, uint32_t id, Draw* best) {
    const float value = (row.logits[id] - row.maximum) * row.inverse_temperature;
    const double score = double(value) + gumbel_noise(key, id);
    if (score > best->score || (score == best->score && int32_t(id) < best->id)) {
        *best = {score, int32_t(id)};
    }
}

Peak row_peak(const float* logits, int64_t vocab) {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    __m512 best = lowest;
    __m512i best_id = _mm512_setzero_si512();
    __mmask16 has_nan = 0;
    __m512i id = lane_ids();
    for (int64_t i = 0; i < vocab; i += kLanes) {
        const __m512 v = _mm512_mask_loadu_ps(lowest, tail_mask(vocab - i), logits + i);
        const __mmask16 better = _mm512_cmp_ps_mask(v, best, _CMP_GT_OQ);
        has_nan |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        best = _mm512_mask_mov_ps(best, better, v);
        best_id = _mm512_mask_mov_epi32(best_id, better, id);
        id = _mm512_add_epi32(id, _mm512_set1_epi32(kLanes));
    }
    const float highest = _mm512_reduce_max_ps(best);
    if (has_nan != 0 || !__builtin_isfinite(highest)) return {highest, -1};
    const __mmask16 winners = _mm512_cmp_ps_mask(best, _mm512_set1_ps(highest), _CMP_EQ_OQ);
    return {highest, _mm512_mask_reduce_min_epi32(winners, best_id)};
}

double scaled_mass(const ScaledRow& row) {
    __m512d sum = _mm512_setzero_pd();
    for (int64_t i = 0; i < row.vocab; i += kLanes) {
        const __m512 e = exp(scaled_at(row, i));
        sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(e)));
        sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_extractf32x8_ps(e, 1)));
    }
    return _mm512_reduce_add_pd(sum);
}

void collect_candidates(const ScaledRow& row, float cutoff, Candidates* out) {
    out->count = 0;
    out->mass = 0.0;
    __m512i id = lane_ids();
    for (int64_t i = 0; i < row.vocab; i += kLanes) {
        const __m512 v = scaled_at(row, i);
        const __mmask16 inside = tail_mask(row.vocab - i);
        const __mmask16 taken =
            _mm512_mask_cmp_ps_mask(inside, v, _mm512_set1_ps(cutoff), _CMP_GE_OQ);
        if (taken != 0) {
            _mm512_mask_compressstoreu_ps(out->values + out->count, taken, v);
            _mm512_mask_compressstoreu_epi32(out->ids + out->count, taken, id);
            out->count += __builtin_popcount(taken);
            out->mass += double(_mm512_mask_reduce_add_ps(taken, exp(v)));
        }
        id = _mm512_add_epi32(id, _mm512_set1_epi32(kLanes));
    }
}

int32_t gumbel_argmax(const ScaledRow& row, const NoiseKey& key) {
    const __m512 none = _mm512_set1_ps(-__builtin_inff());
    const __m512i last = _mm512_set1_epi32(int(row.vocab - 1));
    Draw best{-__builtin_inf(), -1};
    for (int64_t first = 0; first < row.vocab; first += 4 * kLanes) {
        const __m512i groups = _mm512_add_epi32(_mm512_set1_epi32(int(first / 4)), lane_ids());
        const PhiloxWords words = philox(key, groups);
        for (int j = 0; j < 4; ++j) {
            const __m512i id =
                _mm512_add_epi32(_mm512_slli_epi32(groups, 2), _mm512_set1_epi32(j));
            const __mmask16 inside = _mm512_cmple_epi32_mask(id, last);
            const __m512 logits = _mm512_mask_i32gather_ps(none, inside, id, row.logits, 4);
            const __m512 noise = approximate_noise(words.word[j]);
            const __m512 score = _mm512_add_ps(scaled(row, logits), noise);
            const float bound = float(best.score) - kScoreMargin;
            unsigned close = _mm512_cmp_ps_mask(score, _mm512_set1_ps(bound), _CMP_GE_OQ) & inside;
            for (; close != 0; close &= close - 1) {
                const int64_t lane = __builtin_ctz(close);
                consider(row, key, uint32_t(first + 4 * lane + j), &best);
            }
        }
    }
    return best.id;
}

}  // namespace

const SamplingPasses kAvx512Passes = {
    .row_peak = &row_peak,
    .scaled_mass = &scaled_mass,
    .collect_candidates = &collect_candidates,
    .gumbel_argmax = &gumbel_argmax,
};

}  // namespace hal::cpu
