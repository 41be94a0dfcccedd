#include <cstring>

#include "kernels.h"

namespace hal::cpu {

void gather_rows(const GatherArgs& args) {
    const char* table = static_cast<const char*>(args.table);
    char* out = static_cast<char*>(args.out);
#pragma omp parallel for num_threads(args.num_threads) schedule(static) if (args.num_ids > 16)
    for (int64_t i = 0; i < args.num_ids; ++i) {
        const char* row = table + args.ids[i] * args.table_stride_bytes;
        std::memcpy(out + i * args.out_stride_bytes, row, size_t(args.row_bytes));
    }
}

}  // namespace hal::cpu
