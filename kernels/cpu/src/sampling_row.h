// The passes over one row of logits that sample() is made of, for one instruction set.
#pragma once

#include "kernels.h"

namespace hal::cpu {

// Which random stream a row draws from: one value per vocabulary id.
struct NoiseKey {
    uint64_t seed;
    uint32_t token_index;
};

// Logits as the sampler sees them: (logit - maximum) * inverse_temperature, at most 0.
struct ScaledRow {
    const float* logits;
    int64_t vocab;
    float maximum;
    float inverse_temperature;
};

// Tokens of a row, in memory for the whole of it.
struct Candidates {
    uint64_t* keys;
    float* values;
    int32_t* ids;
    int64_t count;
    double mass;  // sum of e^value
};

// The largest value and its lowest id; id -1 where the row holds a NaN or no finite maximum.
struct Peak {
    float value;
    int32_t id;
};
struct SamplingPasses {
    Peak (*row_peak)(const float* logits, int64_t vocab);
    // Sum of e^value over the row.
    double (*scaled_mass)(const ScaledRow& row);
    // Writes values, ids (rising), count and mass of the tokens whose value is at least `cutoff`.
    void (*collect_candidates)(const ScaledRow& row, float cutoff, Candidates* out);
    // argmax of value + Gumbel noise over the whole row.
    int32_t (*gumbel_argmax)(const ScaledRow& row, const NoiseKey& key);
};
extern const SamplingPasses kAvx512Passes;

// A token of each row: -1 where the row holds a NaN or its maximum is not finite, the lowest id of
// the maximum at temperature 0, else a draw as the op `sample` defines it.
void sample(const SamplingPasses& passes, const SampleArgs& args);

}  // namespace hal::cpu
