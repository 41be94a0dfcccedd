// Where x lies once it is rounded to codes (hal/weights.py defines how), for products that keep the
// sums of a tile of tokens in registers.
#pragma once

#include "kernels.h"
#include "threads.h"

namespace hal::cpu {
namespace {

// The tokens of a tile lie interleaved by 4 columns, as a tile reads them: codes [units][tokens],
// then scales [x_groups][tokens] and offsets [x_groups][tokens].
struct Tile {
    Range tokens;
    int32_t* codes;
    float* scales;
    int32_t* offsets;

    int64_t size() const { return tokens.end - tokens.begin; }
};

// Tokens in near-equal tiles of at most kMostTokens.
template <int64_t kMostTokens>
struct TilesOf {
    const QuantizedLinearArgs& args;
    int64_t count = ceil_div(args.m, kMostTokens);

    Tile tile(int64_t index) const {
        const QuantizedShape& shape = args.shape;
        const Range tokens = share(args.m, index, count);
        const int64_t size = tokens.end - tokens.begin;
        char* base = static_cast<char*>(args.scratch) + tokens.begin * shape.x_row_bytes();
        int32_t* codes = reinterpret_cast<int32_t*>(base);
        float* scales = reinterpret_cast<float*>(codes + shape.units() * size);
        int32_t* offsets = reinterpret_cast<int32_t*>(scales + shape.x_groups() * size);
        return {tokens, codes, scales, offsets};
    }
    int64_t index_of(int64_t token) const { return ((token + 1) * count - 1) / args.m; }
};

}  // namespace
}  // namespace hal::cpu
