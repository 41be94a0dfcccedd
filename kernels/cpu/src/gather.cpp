#include <cstring>

#include "kernels.h"
#include "threads.h"

namespace hal::cpu {

void gather_rows(const GatherArgs& args) {
    const char* table = static_cast<const char*>(args.table);
    char* out = static_cast<char*>(args.out);
    for_each(args.num_threads, args.num_ids, args.num_ids > 16, [&](int64_t i) {
        const char* row = table + args.ids[i] * args.table_stride_bytes;
        std::memcpy(out + i * args.out_stride_bytes, row, size_t(args.row_bytes));
    });
}

}  // namespace hal::cpu
