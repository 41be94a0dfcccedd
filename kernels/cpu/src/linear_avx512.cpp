// Dense layer on a packed weight. One layout serves three regimes: up to 6 rows each panel is one
// linear stream, read once and reused in registers (at one row: memory bandwidth); above, a block
// of the panel stays in cache while the row tiles pass over it.
#include "epilogue_avx512.h"
#include "norm_rows_avx512.h"
#include "on_demand.h"
#include "tile_avx512.h"

namespace hal::cpu {
namespace {

// Rows and depth of one cache block: 96 x 64 float32 sums (24 KiB) and 64 x 256 bfloat16 of weight
// (32 KiB) stay in cache, and the row tiles of x reuse them. Depths of 128 and 512 measured slower.
constexpr int64_t kBlockRows = 96;
constexpr int64_t kBlockDepth = 256;

// How much of x may stay in L2 beside the panel of the weight.
constexpr int64_t kBlockBytes = 512 << 10;

struct Block {
    int64_t panel;
    Range rows;
};

// Every block in an order in which neighbours share a panel, and panels a group of blocks of x as
// large as stays in cache; where a single one does not, all of x.
struct Blocks {
    const LinearArgs& args;
    int64_t panels = args.shape.num_panels();
    int64_t per_panel = ceil_div(args.m, kBlockRows);
    int64_t fitting = kBlockBytes * args.shape.step() / (4 * kBlockRows * args.shape.k);
    int64_t group = fitting < 1 || fitting > per_panel ? per_panel : fitting;

    int64_t count() const { return panels * per_panel; }
    Block at(int64_t index) const {
        const int64_t first = index / (panels * group) * group, within = index % (panels * group);
        const int64_t size = per_panel - first < group ? per_panel - first : group;
        return {within / size, share(args.m, first + within % size, per_panel)};
    }
};

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
        finish_row(args.output, block.rows.begin + row, block.panel * kPanelRows, width,
                   sums + row * kPanelRows);
    }
}

// Tokens that are normed together, where a norm is asked for.
constexpr int64_t kNormTokens = 8;

// Where the norm of x is asked for, rows of it once they are needed.
class NormedX {
  public:
    NormedX(const LinearArgs& args, Arena& arena)
        : args_(args), on_demand_(arena, args.norm ? ceil_div(args.m, kNormTokens) : 0) {}

    void need(const Range& rows) const {
        if (args_.norm == nullptr) return;
        const Range units{rows.begin / kNormTokens, ceil_div(rows.end, kNormTokens)};
        on_demand_.need(units, [&](int64_t unit) {
            const int64_t end = (unit + 1) * kNormTokens;
            norm_rows(*args_.norm, {unit * kNormTokens, end < args_.m ? end : args_.m});
        });
    }

  private:
    const LinearArgs& args_;
    OnDemand on_demand_;
};

template <class T>
void run(const LinearArgs& args) {
    static thread_local Arena arena;
    const NormedX x(args, arena);
    const Blocks blocks{args};
    for_each(args.num_threads, blocks.count(), true, [&](int64_t i) {
        const Block block = blocks.at(i);
        x.need(block.rows);
        run_block<T>(args, block);
    });
}

}  // namespace

void linear(const LinearArgs& args) {
    if (args.m == 0) return;
    if (args.shape.dtype == DType::kBfloat16) {
        run<Bf16>(args);
    } else {
        run<float>(args);
    }
}

}  // namespace hal::cpu
