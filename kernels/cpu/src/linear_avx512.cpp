// Dense layer on a packed weight. One layout serves three regimes: up to 6 rows each panel is one
// linear stream, read once and reused in registers (at one row: memory bandwidth); above, a block
// of the panel stays in cache while the row tiles pass over it.
#include "threads.h"
#include "tile_avx512.h"

namespace hal::cpu {
namespace {

// Rows and depth of one cache block: 96 x 64 float32 sums (24 KiB) and 64 x 256 bfloat16 of weight
// (32 KiB) stay in cache, and the row tiles of x reuse them. Depths of 128 and 512 measured slower.
constexpr int64_t kBlockRows = 96;
constexpr int64_t kBlockDepth = 256;

struct Block {
    int64_t panel;
    Range rows;
};

void finish_vector(const LinearArgs& args, int64_t row, int64_t column, __m512 value) {
    const int64_t columns = args.gated ? args.shape.n / 2 : args.shape.n;
    const __mmask16 mask = tail_mask(columns - column);
    store(args.out, args.out_dtype, row * args.out_stride + column, value, mask);
}

__m512 biased(const LinearArgs& args, int64_t column, const float* sums) {
    const __m512 value = load(sums);
    if (args.bias == nullptr) return value;
    const __mmask16 mask = tail_mask(args.shape.n - column);
    return _mm512_add_ps(value, load(args.bias, args.shape.dtype, column, mask));
}

void finish_row(const LinearArgs& args, int64_t row, int64_t panel, const float* sums) {
    const int64_t first = panel * kPanelRows;
    const int64_t width = args.shape.panel_width(panel);
    if (args.gated) {
        for (int64_t c = 0; c < width; c += 2 * kLanes) {
            const __m512 gate = biased(args, first + c, sums + c);
            const __m512 up = biased(args, first + c + kLanes, sums + c + kLanes);
            const __m512 value = _mm512_mul_ps(activated(args.activation, gate), up);
            finish_vector(args, row, (first + c) / 2, value);
        }
        return;
    }
    for (int64_t c = 0; c < width; c += kLanes) {
        const __m512 value = activated(args.activation, biased(args, first + c, sums + c));
        finish_vector(args, row, first + c, value);
    }
}

template <class T>
void run_block(const LinearArgs& args, const Block& block) {
    alignas(64) float sums[kBlockRows * kPanelRows];
    const PackedShape& shape = args.shape;
    const int64_t width = shape.panel_width(block.panel);
    const int64_t rows = block.rows.end - block.rows.begin;
    const T* x = static_cast<const T*>(args.x) + block.rows.begin * args.x_stride;
    const T* panel = static_cast<const T*>(args.weight) + shape.panel_offset(block.panel);
    // With few rows one pass over the whole depth avoids storing and reloading sums.
    const int64_t depth = rows <= kTileRows ? shape.k : kBlockDepth;
    for (int64_t k = 0; k < shape.k; k += depth) {
        const int64_t count = shape.k - k < depth ? shape.k - k : depth;
        tile_block<T>({.a = x + k,
                       .a_stride = args.x_stride,
                       .b = panel + k * width,
                       .k = count,
                       .c = sums,
                       .c_stride = kPanelRows,
                       .accumulate = k > 0},
                      rows, width / kLanes);
    }
    for (int64_t row = 0; row < rows; ++row) {
        finish_row(args, block.rows.begin + row, block.panel, sums + row * kPanelRows);
    }
}

template <class T>
void run_share(const LinearArgs& args, int64_t thread, int64_t num_threads) {
    const int64_t row_blocks = ceil_div(args.m, kBlockRows);
    const Range mine = share(args.shape.num_panels() * row_blocks, thread, num_threads);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
        // Consecutive blocks share a panel, which therefore stays in this core's L2.
        run_block<T>(args, {i / row_blocks, share(args.m, i % row_blocks, row_blocks)});
    }
}

}  // namespace

void linear(const LinearArgs& args) {
    if (args.m == 0) return;
#pragma omp parallel num_threads(args.num_threads)
    {
        if (args.shape.dtype == DType::kBfloat16) {
            run_share<Bf16>(args, thread_index(), thread_count());
        } else {
            run_share<float>(args, thread_index(), thread_count());
        }
    }
}

}  // namespace hal::cpu
