#include <limits>

#include "kernels.h"
#include "threads.h"

namespace hal::cpu {
namespace {

constexpr int64_t kWordBits = 32;

void mask_row(const uint32_t* mask, int64_t vocab, float* row) {
    constexpr float kBanned = -std::numeric_limits<float>::infinity();
    for (int64_t first = 0; first < vocab; first += kWordBits) {
        const uint32_t word = mask[first / kWordBits];
        if (word == ~uint32_t(0)) continue;
        const int64_t count = vocab - first < kWordBits ? vocab - first : kWordBits;
        for (int64_t bit = 0; bit < count; ++bit) {
            const bool is_allowed = (word >> bit & 1) != 0;
            row[first + bit] = is_allowed ? row[first + bit] : kBanned;
        }
    }
}

}  // namespace

void mask_logits(const MaskArgs& args) {
    for_each(args.num_threads, args.num_rows, args.num_rows > 1, [&](int64_t m) {
        mask_row(args.mask + m * args.mask_stride, args.vocab,
                 args.logits + args.rows[m] * args.stride);
    });
}

}  // namespace hal::cpu
