// The portable kernels of one instruction set: levels.h lists them. They all read and write the same
// stored layouts. No std:: here: this is included where code is compiled for one instruction set.
#pragma once

#include "kernels.h"

namespace hal::cpu {

struct LevelKernels {
    void (*linear)(const LinearArgs&);
    int64_t (*quantize_rows)(const QuantizeArgs&);
    void (*gather_quantized_rows)(const QuantizedGatherArgs&);
    void (*quantized_linear)(const QuantizedLinearArgs&);
    // Over a cache of rows, [num_blocks, 2, num_kv_heads, block_size, head_dim]: keys, then values,
    // in the dtype of q; head_dim is a multiple of 16.
    void (*attention)(const AttentionArgs&);
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
