#include <cstring>

#include "kernels.h"
#include "threads.h"

namespace hal::cpu {

void gather_rows(const GatherArgs& args) {
    const char* table = static_cast<const char*>(args.table);
    char* out = static_cast<char*>(args.out);
    for_each(args.num_threads, args.num_ids, args.num_ids > 16, [&](int64_t i) {
        const int64_t id = args.ids[i];
        char* to = out + i * args.out_stride_bytes;
        if (id < 0 || id >= args.num_rows) {
            std::memset(to, 0xff, size_t(args.row_bytes));
        } else {
            std::memcpy(to, table + id * args.table_stride_bytes, size_t(args.row_bytes));
        }
    });
}

void own_tokens(const OwnTokensArgs& args) {
    for (int64_t t = 0; t < args.num_ids; ++t) {
        const uint32_t id = uint32_t(args.ids[t]) - uint32_t(args.first);
        args.out[t] = id < uint32_t(args.count) ? int32_t(id) : 0;
    }
}

void zero_other_rows(const ZeroOtherRowsArgs& args) {
    for (int64_t t = 0; t < args.num_ids; ++t) {
        if (uint32_t(args.ids[t]) - uint32_t(args.first) < uint32_t(args.count)) continue;
        std::memset(static_cast<char*>(args.out) + t * args.out_stride_bytes, 0,
                    size_t(args.row_bytes));
    }
}

void take_tokens(const TakeTokensArgs& args) {
    for (int64_t t = 0; t < args.num_tokens; ++t) {
        const int32_t token = args.token_ids[t];
        args.out[t] = token < 0 ? args.last_tokens[args.slots[t]] : token;
    }
}

void keep_tokens(const KeepTokensArgs& args) {
    for (int64_t i = 0; i < args.num_tokens; ++i) args.last_tokens[args.slots[i]] = args.tokens[i];
}

}  // namespace hal::cpu
