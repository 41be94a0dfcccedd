// The passes over a row of logits: see sampling_row.h.
#pragma once

#include "philox.h"
#include "portable_lanes.h"

namespace hal::cpu {
namespace {

// As in sampling_avx512.cpp: scores come from float32 logarithms, off by less than 1e-5; whatever
// comes this close to the best so far is computed again in float64, as the reference does.
constexpr float kScoreMargin = 1e-3f;

constexpr float kLowest = -__builtin_inff();

inline Floats logits_at(const float* logits, int64_t i, int64_t vocab) {
    if (i + kWidth <= vocab) return load(logits + i);
    alignas(64) float values[kWidth];
    for (int64_t j = 0; j < kWidth; ++j) values[j] = i + j < vocab ? logits[i + j] : kLowest;
    return load(values);
}
inline Floats scaled_at(const ScaledRow& row, int64_t i) {
    return (logits_at(row.logits, i, row.vocab) - splat(row.maximum)) *
           splat(row.inverse_temperature);
}

Peak find_row_peak(const float* logits, int64_t vocab) {
    Floats best = splat(kLowest);
    Ints best_id = splat(0), has_nan = splat(0), id = lane_ids();
    for (int64_t i = 0; i < vocab; i += kWidth, id = add(id, splat(kWidth))) {
        const Floats v = logits_at(logits, i, vocab);
        const Ints is_better = is_greater(v, best);
        has_nan = bit_or(has_nan, is_greater(magnitude_bits(v), splat(0x7f800000)));
        best = as_floats(choose(is_better, as_ints(v), as_ints(best)));
        best_id = choose(is_better, id, best_id);
    }
    alignas(64) float values[kWidth];
    alignas(64) int32_t ids[kWidth];
    store(values, best);
    __builtin_memcpy(ids, &best_id, sizeof ids);
    Peak peak{values[0], ids[0]};
    for (int j = 1; j < kWidth; ++j) {
        const bool is_tie = values[j] == peak.value && ids[j] < peak.id;
        if (values[j] > peak.value || is_tie) peak = {values[j], ids[j]};
    }
    return is_any(has_nan) || !__builtin_isfinite(peak.value) ? Peak{peak.value, -1} : peak;
}

double sum_scaled_mass(const ScaledRow& row) {
    alignas(64) float values[kWidth];
    double sums[kWidth] = {};
    for (int64_t i = 0; i < row.vocab; i += kWidth) {
        store(values, exp(scaled_at(row, i)));
        for (int j = 0; j < kWidth; ++j) sums[j] += double(values[j]);
    }
    for (int j = 1; j < kWidth; ++j) sums[0] += sums[j];
    return sums[0];
}

void collect_row_candidates(const ScaledRow& row, float cutoff, Candidates* out) {
    out->count = 0;
    out->mass = 0.0;
    alignas(64) float values[kWidth], weights[kWidth];
    for (int64_t i = 0; i < row.vocab; i += kWidth) {
        const Floats v = scaled_at(row, i);
        const Ints is_below = is_greater(splat(cutoff), v);
        if (!is_any(bit_xor(is_below, splat(-1)))) continue;
        store(values, v);
        store(weights, exp(v));
        for (int64_t j = 0; j < kWidth && i + j < row.vocab; ++j) {
            if (values[j] < cutoff) continue;
            out->values[out->count] = values[j];
            out->ids[out->count++] = int32_t(i + j);
            out->mass += double(weights[j]);
        }
    }
}

// log(1 + t) for t in [-0.3, 0.42], to 1e-7 of the result. Source: Cephes logf.
inline Floats log_near_one(Floats t) {
    constexpr float kCoefficients[] = {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f,
                                       1.4249322787e-1f,  -1.6668057665e-1f, 2.0000714765e-1f,
                                       -2.4999993993e-1f, 3.3333331174e-1f};
    Floats p = splat(7.0376836292e-2f);
#pragma GCC unroll 8
    for (const float c : kCoefficients) p = fma(p, t, splat(c));
    const Floats square = t * t;
    p = p * t * square;
    return t + fma(square, splat(-0.5f), p);
}

// Of normal numbers above 0.
inline Floats log(Floats x) {
    const Ints bits = as_ints(x), one = splat(0x3f800000);
    const Ints fraction = bit_and(bits, splat(0x007fffff));
    // Mantissas above the square root of 2 count from the next power.
    const Ints is_high = is_greater(fraction, splat(0x003504f3));
    const Ints power = sub(sub(shift_right<23>(bits), splat(127)), is_high);
    const Ints mantissa = add(bit_or(fraction, one), bit_and(is_high, splat(-0x00800000)));
    return fma(to_floats(power), splat(0.693147181f),
               log_near_one(as_floats(mantissa) - splat(1.0f)));
}

inline Floats unsigned_to_floats(Ints v) {
    const Ints high = bit_and(shift_right<16>(v), splat(0xffff));
    return fma(to_floats(high), splat(65536.0f), to_floats(bit_and(v, splat(0xffff))));
}

// -log(-log(u)), u = (word + 0.5) / 2^32. Near u = 1, where the large noise is, from 1 - u, which
// float32 holds and u itself does not.
inline Floats approximate_noise(Ints word) {
    const Floats half = splat(0.5f), unit = splat(0x1p-32f);
    const Floats u = (unsigned_to_floats(word) + half) * unit;
    const Floats rest = (unsigned_to_floats(bit_xor(word, splat(-1))) + half) * unit;
    const Ints is_near = is_greater(splat(0.25f), rest);
    const Floats inner = as_floats(
        choose(is_near, as_ints(log_near_one(zeros() - rest)), as_ints(log(u))));
    return zeros() - log(zeros() - inner);
}

// The words of 4 * kWidth ids from 4 * group on.
inline void philox_words(const NoiseKey& key, int32_t group, uint32_t* words) {
    Ints c0 = add(splat(group), lane_ids()), c1 = splat(int32_t(key.token_index));
    Ints c2 = splat(0), c3 = splat(0);
    uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(key.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const WideProduct first = wide_product(c0, kPhiloxMultiplier0);
        const WideProduct second = wide_product(c2, kPhiloxMultiplier1);
        c0 = bit_xor(bit_xor(second.high, c1), splat(int32_t(k0)));
        c1 = second.low;
        c2 = bit_xor(bit_xor(first.high, c3), splat(int32_t(k1)));
        c3 = first.low;
        k0 += kPhiloxStep0;
        k1 += kPhiloxStep1;
    }
    const Ints all[] = {c0, c1, c2, c3};
    alignas(64) uint32_t lanes[4][kWidth];
    __builtin_memcpy(lanes, all, sizeof lanes);
    for (int i = 0; i < kWidth; ++i) {
        for (int j = 0; j < 4; ++j) words[4 * i + j] = lanes[j][i];
    }
}

// The best token so far.
struct Draw {
    double score;
    int32_t id;

    void consider(const ScaledRow& row, const NoiseKey& key, uint32_t candidate) {
        const float value = (row.logits[candidate] - row.maximum) * row.inverse_temperature;
        const double other = double(value) + gumbel_noise(key, candidate);
        if (other > score || (other == score && int32_t(candidate) < id)) {
            score = other;
            id = int32_t(candidate);
        }
    }
};

int32_t find_gumbel_argmax(const ScaledRow& row, const NoiseKey& key) {
    alignas(64) uint32_t words[4 * kWidth];
    alignas(64) float scores[kWidth];
    Draw best{-__builtin_inf(), -1};
    for (int64_t i = 0; i < row.vocab; i += kWidth) {
        const int64_t part = i % (4 * kWidth);
        if (part == 0) philox_words(key, int32_t(i / 4), words);
        const Floats score = scaled_at(row, i) + approximate_noise(load_bytes(words + part));
        const float bound = float(best.score) - kScoreMargin;
        if (!is_any(bit_xor(is_greater(splat(bound), score), splat(-1)))) continue;
        store(scores, score);
        for (int64_t j = 0; j < kWidth && i + j < row.vocab; ++j) {
            if (scores[j] >= bound) best.consider(row, key, uint32_t(i + j));
        }
    }
    return best.id;
}

constexpr SamplingPasses kPortablePasses = {
    .row_peak = &find_row_peak,
    .scaled_mass = &sum_scaled_mass,
    .collect_candidates = &collect_row_candidates,
    .gumbel_argmax = &find_gumbel_argmax,
};

}  // namespace
}  // namespace hal::cpu
