// Gumbel noise of one vocabulary id, exactly as the reference draws it.
// Source: Philox4x32-10 (Salmon et al. 2011).
#pragma once

#include <cstdint>

#include "sampling_row.h"

namespace hal::cpu {
namespace {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxStep0 = 0x9E3779B9;
constexpr uint32_t kPhiloxStep1 = 0xBB67AE85;
constexpr int kPhiloxRounds = 10;

inline uint32_t philox_word(const NoiseKey& key, uint32_t id) {
    uint32_t c[4] = {id >> 2, key.token_index, 0, 0};
    uint32_t k0 = uint32_t(key.seed);
    uint32_t k1 = uint32_t(key.seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t first = uint64_t(c[0]) * kPhiloxMultiplier0;
        const uint64_t second = uint64_t(c[2]) * kPhiloxMultiplier1;
        c[0] = uint32_t(second >> 32) ^ c[1] ^ k0;
        c[1] = uint32_t(second);
        c[2] = uint32_t(first >> 32) ^ c[3] ^ k1;
        c[3] = uint32_t(first);
        k0 += kPhiloxStep0;
        k1 += kPhiloxStep1;
    }
    return c[id & 3];
}

inline double gumbel_noise(const NoiseKey& key, uint32_t id) {
    const double u = (double(philox_word(key, id)) + 0.5) * 0x1p-32;
    return -__builtin_log(-__builtin_log(u));
}

}  // namespace
}  // namespace hal::cpu
