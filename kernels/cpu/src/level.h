// The portable kernels of one instruction set: levels.h lists them. They all read and write the same
// stored layouts. No std:: here: this is included where code is compiled for one instruction set.
#pragma once

#include "kernels.h"

namespace hal::cpu {

// Causal attention of the new tokens of each sequence (prefill, chunk or decode alike) over a paged
// cache of rows, [num_blocks, 2, num_kv_heads, block_size, head_dim]: keys, then values. All in
// one dtype.
struct RowAttentionArgs {
    const void* q;  // [num_tokens, num_heads, head_dim], tokens q_stride apart
    int64_t q_stride;
    const void* kv;
    int64_t num_kv_heads;
    int64_t block_size;
    int64_t head_dim;  // a multiple of 16
    void* out;
    int64_t out_stride;
    const int32_t* cu_seqlens_q;  // [num_seqs + 1]
    const int32_t* seq_lens;      // [num_seqs], with the new tokens
    const int32_t* block_table;   // [num_seqs, block_table_stride]
    int64_t block_table_stride;
    int64_t num_seqs;
    int64_t num_heads;
    float scale;
    float softcap;   // 0: none
    int64_t window;  // 0: none; else a query sees itself and window - 1 tokens before it
    DType dtype;
    int num_threads;
};

struct LevelKernels {
    void (*linear)(const LinearArgs&);
    int64_t (*quantize_rows)(const QuantizeArgs&);
    void (*gather_quantized_rows)(const QuantizedGatherArgs&);
    void (*quantized_linear)(const QuantizedLinearArgs&);
    void (*attention)(const RowAttentionArgs&);
};

// Data, not code: each stands in the file that is compiled for its instructions.
extern const LevelKernels kAvx2Kernels;
extern const LevelKernels kAvx512fKernels;
extern const LevelKernels kNeonKernels;
extern const LevelKernels kDotprodKernels;

}  // namespace hal::cpu
