// The portable kernels of one instruction set: levels.h lists them. They all read and write the same
// stored layouts. No std:: here: this is included where code is compiled for one instruction set.
#pragma once

#include "sampling_row.h"

namespace hal::cpu {

// nullptr: what a set of kernels beside the portable ones leaves out.
struct LevelKernels {
    void (*linear)(const LinearArgs&) = nullptr;
    int64_t (*quantize_rows)(const QuantizeArgs&) = nullptr;
    void (*gather_quantized_rows)(const QuantizedGatherArgs&) = nullptr;
    void (*quantized_linear)(const QuantizedLinearArgs&) = nullptr;
    // Over a cache of rows, [num_blocks, 2, num_kv_heads, block_size, head_dim]: keys, then values,
    // in the dtype of q; head_dim is a multiple of 16.
    void (*attention)(const AttentionArgs&) = nullptr;
    void (*write_kv)(const WriteKvArgs&) = nullptr;  // to such a cache
    void (*norm)(const NormArgs&) = nullptr;
    void (*activate)(const ActivationArgs&) = nullptr;
    void (*qk_norm_rope)(const RopeArgs&) = nullptr;
    SamplingPasses sampling = {};
};

// Data, not code: each stands in the file that is compiled for its instructions.
extern const LevelKernels kAvx2Kernels;
extern const LevelKernels kAvx512fKernels;
extern const LevelKernels kNeonKernels;
extern const LevelKernels kDotprodKernels;

// Products of codes only: all else is as without these instructions.
void dots_linear_avx512vnni(const QuantizedLinearArgs& args);
void dots_linear_avxvnni(const QuantizedLinearArgs& args);

}  // namespace hal::cpu
