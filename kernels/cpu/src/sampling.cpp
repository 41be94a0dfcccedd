// sample: which of a row's tokens the filters leave, and the draw among them. Compiled for no
// instruction set (it uses the standard library), unlike the passes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "arena.h"
#include "kernels.h"
#include "philox.h"
#include "sampling_row.h"
#include "threads.h"

namespace hal::cpu {
namespace {

// Tokens below e^-4 of the largest are looked at only where those above are not enough, and so on.
constexpr float kCutoffs[] = {-4.0f, -8.0f, -12.0f, -16.0f, -24.0f,
                              -std::numeric_limits<float>::infinity()};

struct Filters {
    int64_t top_k;  // 0: off
    float top_p;    // 1 or more: off
    float min_p;    // 0: off

    bool is_off() const { return top_k == 0 && top_p >= 1.0f && min_p <= 0.0f; }
};

// Sorts by falling value, then rising id: the bits of numbers <= 0 rise as the numbers fall.
uint64_t sort_key(float value, int32_t id) {
    return uint64_t(std::bit_cast<uint32_t>(value)) << 32 | uint32_t(id);
}
float key_value(uint64_t key) { return std::bit_cast<float>(uint32_t(key >> 32)); }

// Whether all tokens that the filters keep, and all that their masses count, are among these.
bool is_enough(const Filters& filters, const Candidates& found, float cutoff, double total) {
    const bool has_top_k = found.count >= filters.top_k;
    if (filters.top_k > 0 && filters.top_p < 1.0f) return has_top_k;
    if (filters.min_p > 0.0f && cutoff < std::log(filters.min_p)) return true;
    if (filters.top_k > 0) return has_top_k;
    return filters.top_p < 1.0f && found.mass >= double(filters.top_p) * total;
}

// Leaves the k largest and the ties of the last of them.
void keep_largest(int64_t k, Candidates* found) {
    uint64_t* edge = found->keys + k - 1;
    uint64_t* end = found->keys + found->count;
    std::nth_element(found->keys, edge, end);
    const float value = key_value(*edge);
    end = std::partition(edge + 1, end, [&](uint64_t key) { return key_value(key) == value; });
    found->count = end - found->keys;
}

// The candidates that top-k leaves, sorted.
Candidates find_candidates(const SamplingPasses& passes, const ScaledRow& row,
                           const Filters& filters, double total) {
    static thread_local Arena arena;
    char* memory = arena.reserve(row.vocab * 16);
    Candidates found{.keys = reinterpret_cast<uint64_t*>(memory),
                     .values = reinterpret_cast<float*>(memory + row.vocab * 8),
                     .ids = reinterpret_cast<int32_t*>(memory + row.vocab * 12),
                     .count = 0,
                     .mass = 0.0};
    for (const float cutoff : kCutoffs) {
        passes.collect_candidates(row, cutoff, &found);
        if (is_enough(filters, found, cutoff, total)) break;
    }
    for (int64_t i = 0; i < found.count; ++i) {
        found.keys[i] = sort_key(found.values[i], found.ids[i]);
    }
    if (filters.top_k > 0 && filters.top_k < found.count) keep_largest(filters.top_k, &found);
    std::sort(found.keys, found.keys + found.count);
    return found;
}

// How many of the sorted candidates min-p and top-p leave; the first always stays.
int64_t num_kept(const Filters& filters, const Candidates& found, double total) {
    if (filters.top_k > 0) {
        total = 0.0;
        for (int64_t i = 0; i < found.count; ++i) {
            total += std::exp(double(key_value(found.keys[i])));
        }
    }
    double before = 0.0;
    for (int64_t i = 0; i < found.count; ++i) {
        const double weight = std::exp(double(key_value(found.keys[i])));
        const bool is_cut = filters.top_p < 1.0f && before >= double(filters.top_p) * total;
        if (i > 0 && (is_cut || weight < double(filters.min_p))) return i;
        before += weight;
    }
    return found.count;
}

int32_t draw_filtered(const SamplingPasses& passes, const ScaledRow& row, const Filters& filters,
                      const NoiseKey& key) {
    const bool needs_total = filters.top_p < 1.0f && filters.top_k == 0;
    const double total = needs_total ? passes.scaled_mass(row) : 0.0;
    const Candidates found = find_candidates(passes, row, filters, total);
    const int64_t kept = num_kept(filters, found, total);
    double best = -std::numeric_limits<double>::infinity();
    int32_t best_id = -1;
    for (int64_t i = 0; i < kept; ++i) {
        const int32_t id = int32_t(uint32_t(found.keys[i]));
        const double score = double(key_value(found.keys[i])) + gumbel_noise(key, uint32_t(id));
        if (score > best || (score == best && id < best_id)) {
            best = score;
            best_id = id;
        }
    }
    return best_id;
}

int32_t sample_row(const SamplingPasses& passes, const SampleArgs& args, int64_t row) {
    const float* logits = args.logits + row * args.stride;
    const Peak peak = passes.row_peak(logits, args.vocab);
    if (peak.id < 0 || args.temperature == nullptr || args.temperature[row] <= 0.0f) return peak.id;
    const float inverse = std::min(1.0f / args.temperature[row], std::numeric_limits<float>::max());
    const ScaledRow scaled{logits, args.vocab, peak.value, inverse};
    const NoiseKey key{uint64_t(args.seeds[row]), uint32_t(args.token_index[row])};
    const Filters filters{std::min<int64_t>(args.top_k[row], args.vocab), args.top_p[row],
                          args.min_p[row]};
    if (!args.has_filters || filters.is_off()) return passes.gumbel_argmax(scaled, key);
    return draw_filtered(passes, scaled, filters, key);
}

}  // namespace

void sample(const SamplingPasses& passes, const SampleArgs& args) {
    for_each(args.num_threads, args.rows, true,
             [&](int64_t row) { args.tokens[row] = sample_row(passes, args, row); });
}

}  // namespace hal::cpu
