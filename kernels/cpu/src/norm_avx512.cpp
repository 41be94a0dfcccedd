#include "norm_rows_avx512.h"

namespace hal::cpu {
namespace {

// Below this many elements waking a second thread costs more than it saves.
constexpr int64_t kParallelElements = 32768;

}  // namespace

void norm(const NormArgs& args) {
    const bool is_enough = args.rows * args.hidden >= kParallelElements;
    for_each_range(is_enough ? args.num_threads : 1, args.rows,
                   [&](const Range& rows) { norm_rows(args, rows); });
}

}  // namespace hal::cpu
