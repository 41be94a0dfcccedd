// Every portable kernel, for the instruction set whose registers_*.h was included before.
#pragma once

#include "level.h"
#include "portable_attention.h"
#include "portable_decoded_linear.h"
#include "portable_dots_linear.h"
#include "portable_linear.h"
#include "portable_rows.h"
#include "portable_sampling.h"

namespace hal::cpu {
namespace {

void run_quantized_linear(const QuantizedLinearArgs& args) {
    const auto run = args.shape.codes == Codes::kDots ? run_dots_linear : run_decoded_linear;
    run(args);
}

constexpr LevelKernels kPortableKernels = {
    .linear = &run_linear,
    .quantize_rows = &run_quantize_rows,
    .gather_quantized_rows = &run_gather_quantized_rows,
    .quantized_linear = &run_quantized_linear,
    .attention = &run_attention,
    .write_kv = &run_write_kv,
    .norm = &run_norm,
    .activate = &run_activate,
    .qk_norm_rope = &run_rope,
    .sampling = kPortablePasses,
};

}  // namespace
}  // namespace hal::cpu
