// Every portable kernel of every level that this CPU runs against scalar references in double, on
// random values of odd shapes: for emulated CPUs, where there is no Python.
//
//     check_levels [LEVEL...]    exit status 1 if a check fails or a level named cannot run
#include "check_rows.h"
#include "references.h"
#include "src/features.h"
#include "src/levels.h"

namespace {

// Memory on a line's boundary, with room for prefetches' addresses only behind it.
struct Lines {
    explicit Lines(int64_t bytes) : memory(size_t(bytes + 64), 0) {}
    char* data() {
        return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
    }
    std::vector<char> memory;
};

struct Setting {
    int64_t n;
    int64_t k;
    Activation activation;
    bool gated;
};

const Setting kSettings[] = {
    {1, 3, Activation::kNone, false},       {16, 8, Activation::kSilu, false},
    {100, 72, Activation::kGelu, false},    {130, 77, Activation::kGeluTanh, false},
    {48, 33, Activation::kRelu, false},     {70, 1027, Activation::kNone, false},
    {96, 600, Activation::kSilu, true},     {160, 41, Activation::kGeluTanh, true},
};
const int64_t kTokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 49, 97};
constexpr int64_t kMostTokens = 97;

// One product in every number of tokens: near the reference, the same bits, nothing beside `out`.
template <class Run>
void check_products(const std::string& what, const Doubles& reference, DType dtype, Run run) {
    const int64_t columns = int64_t(reference[0].size()), stride = columns + 3;
    std::vector<float> every(size_t(kMostTokens * stride));
    double norm = 0;
    for (const auto& row : reference) {
        for (double value : row) norm += value * value;
    }
    const double size = std::sqrt(norm / double(kMostTokens * columns));
    const double rounding = dtype == DType::kFloat32 ? 0 : 1.0 / 256;
    for (int64_t i = std::size(kTokens); i-- > 0;) {
        const int64_t m = kTokens[i];
        const std::string label = what + ", " + std::to_string(m) + " tokens";
        std::vector<float> out(size_t(m * stride), NAN);
        std::vector<Bf16> halves(out.size(), Bf16{0x7fc0});
        const bool is_float = dtype == DType::kFloat32;
        run(m, is_float ? static_cast<void*>(out.data()) : halves.data(), stride);
        for (size_t j = 0; !is_float && j < out.size(); ++j) out[j] = from_bf16(halves[j]);
        if (m == kMostTokens) every = out;
        double worst = 0;
        bool is_same = true, is_guarded = true;
        for (int64_t row = 0; row < m; ++row) {
            for (int64_t c = 0; c < stride; ++c) {
                const float value = out[size_t(row * stride + c)];
                if (c >= columns) {
                    is_guarded = is_guarded && std::isnan(value);
                    continue;
                }
                const double wanted = reference[size_t(row)][size_t(c)];
                const double limit = 1e-5 * size + rounding * std::fabs(wanted);
                const double used = std::fabs(value - wanted) / limit;
                worst = used <= worst ? worst : used;  // NaN is worst
                is_same = is_same && value == every[size_t(row * stride + c)];
            }
        }
        check(worst <= 1, label + ": error " + std::to_string(worst) + " of the limit");
        check(is_same, label + ": other bits than in a batch of 97");
        check(is_guarded, label + ": written behind a row");
    }
}

LinearOutput output(const Setting& setting, const Matrix& bias, void* out, int64_t stride) {
    return {.n = setting.n,
            .bias = bias.data(),
            .bias_dtype = bias.dtype,
            .out = out,
            .dtype = bias.dtype,
            .stride = stride,
            .activation = setting.activation,
            .gated = setting.gated};
}

void check_linear(const Level& level, const Setting& setting, DType dtype, const std::string& what) {
    const Matrix x(kMostTokens, setting.k, dtype, 5, 1), weight(setting.n, setting.k, dtype, 3, 2);
    const Matrix bias(1, setting.n, dtype, 0, 3);
    const PackedShape shape{setting.n, setting.k, dtype};
    Lines packed(round_up(setting.n, kLanes) * shape.units() * 4);
    pack_rows({.src = weight.data(),
               .src_dtype = dtype,
               .src_stride = weight.stride,
               .rows = setting.n,
               .dst = packed.data(),
               .shape = shape,
               .first_row = 0,
               .gated = setting.gated,
               .num_threads = 1});
    const Doubles reference = expected(values_of(x), values_of(weight), bias, setting.activation,
                                       setting.gated);
    check_products(what, reference, dtype, [&](int64_t m, void* out, int64_t stride) {
        level.kernels->linear({.x = x.data(),
                               .x_stride = x.stride,
                               .m = m,
                               .weight = packed.data(),
                               .shape = shape,
                               .output = output(setting, bias, out, stride),
                               .num_threads = 1});
    });
}

void check_look_up(const Level& level, const QuantizedShape& shape, const char* weight,
                   const Doubles& reference, bool gated, const std::string& what) {
    std::vector<int32_t> ids;
    for (int64_t row = 0; row < shape.n; ++row) {
        ids.push_back(int32_t(stored_row(row, shape.n, gated)));
    }
    ids.push_back(-1);
    std::vector<float> out(ids.size() * size_t(shape.k));
    level.kernels->gather_quantized_rows({.weight = weight,
                                          .shape = shape,
                                          .ids = ids.data(),
                                          .num_ids = int64_t(ids.size()),
                                          .out = out.data(),
                                          .out_dtype = DType::kFloat32,
                                          .out_stride = shape.k,
                                          .num_threads = 1});
    bool is_same = true;
    for (size_t i = 0; i < size_t(shape.n * shape.k); ++i) {
        is_same = is_same && out[i] == float(reference[i / size_t(shape.k)][i % size_t(shape.k)]);
    }
    check(is_same, what + ": other codes than the definition's");
    check(std::isnan(out.back()), what + ": an id outside the matrix is a row");
}

void check_quantized(const Level& level, const Setting& setting, DType dtype,
                     const Rounding& rounding, const std::string& what) {
    const Matrix x(kMostTokens, setting.k, dtype, 5, 4), weight(setting.n, setting.k, dtype, 3, 5);
    const Matrix bias(1, setting.n, dtype, 0, 6);
    const QuantizedShape shape{setting.n, setting.k, rounding.group, rounding.has_zeros,
                               rounding.codes};
    Lines codes(shape.num_strips() * shape.strip_bytes());
    const int64_t num_bad = level.kernels->quantize_rows({.src = weight.data(),
                                                          .src_dtype = dtype,
                                                          .src_stride = weight.stride,
                                                          .rows = setting.n,
                                                          .dst = codes.data(),
                                                          .shape = shape,
                                                          .first_row = 0,
                                                          .gated = setting.gated,
                                                          .num_threads = 1});
    check(num_bad == 0, what + ": sound rows refused");
    const Doubles stored = rounded_weight(weight, rounding);
    check_look_up(level, shape, codes.data(), stored, setting.gated, what);
    const Doubles reference =
        expected(rounded_x(x, rounding), stored, bias, setting.activation, setting.gated);
    const int64_t element = dtype == DType::kFloat32 ? 4 : 2;
    Lines scratch(kMostTokens * (rounding.codes == Codes::kDots ? shape.x_row_bytes()
                                                                : 4 * element * shape.units()));
    check_products(what, reference, dtype, [&](int64_t m, void* out, int64_t stride) {
        level.kernels->quantized_linear({.x = x.data(),
                                         .x_dtype = dtype,
                                         .x_stride = x.stride,
                                         .m = m,
                                         .weight = codes.data(),
                                         .shape = shape,
                                         .scratch = scratch.data(),
                                         .output = output(setting, bias, out, stride),
                                         .num_threads = 1});
    });
}

// The largest codes of both signs in every place: where 16 bits would overflow or saturate.
void check_extremes(const Level& level, const Rounding& rounding) {
    Matrix x(kMostTokens, 256, DType::kFloat32, 0, 7), weight(64, 256, DType::kFloat32, 0, 8);
    for (float& value : x.floats) value = value < 0 ? -1.0f : 1.0f;
    for (float& value : weight.floats) value = value < 0 ? -1.0f : 1.0f;
    std::fill(x.floats.begin(), x.floats.begin() + 512, 1.0f);
    std::fill(x.floats.begin() + 256, x.floats.begin() + 512, -1.0f);
    std::fill(weight.floats.begin(), weight.floats.begin() + 512, 1.0f);
    std::fill(weight.floats.begin() + 256, weight.floats.begin() + 512, -1.0f);
    const Matrix bias(1, 64, DType::kFloat32, 0, 9);
    const QuantizedShape shape{64, 256, rounding.group, rounding.has_zeros, rounding.codes};
    Lines codes(shape.num_strips() * shape.strip_bytes());
    level.kernels->quantize_rows({weight.data(), DType::kFloat32, 256, 64, codes.data(), shape, 0,
                                  false, 1});
    const Doubles reference = expected(rounded_x(x, rounding), rounded_weight(weight, rounding),
                                       bias, Activation::kNone, false);
    Lines scratch(kMostTokens * 16 * shape.units());
    const Setting setting{64, 256, Activation::kNone, false};
    const std::string what = level.name + " extremes, " + rounding.name();
    check_products(what, reference, DType::kFloat32, [&](int64_t m, void* out, int64_t stride) {
        level.kernels->quantized_linear({x.data(), DType::kFloat32, 256, m, codes.data(), shape,
                                         scratch.data(), output(setting, bias, out, stride), 1});
    });
}

// A cache of one sequence in blocks of 8 in reverse order, NaN wherever no key of it lies.
struct Cache {
    static constexpr int64_t kBlock = 8;
    int64_t heads, head_dim, num_keys, num_blocks;
    std::vector<int32_t> table;
    std::vector<float> memory;
    Matrix keys, values;  // [num_keys, heads * head_dim]

    Cache(int64_t heads, int64_t head_dim, int64_t num_keys)
        : heads(heads), head_dim(head_dim), num_keys(num_keys), num_blocks(ceil_div(num_keys, kBlock)),
          memory(size_t(num_blocks * 2 * heads * kBlock * head_dim), NAN),
          keys(num_keys, heads * head_dim, DType::kFloat32, 0, 10),
          values(num_keys, heads * head_dim, DType::kFloat32, 0, 11) {
        for (int64_t i = 0; i < num_blocks; ++i) table.push_back(int32_t(num_blocks - 1 - i));
        for (int64_t key = 0; key < num_keys; ++key) {
            for (int64_t i = 0; i < heads * head_dim; ++i) {
                at(key, 0, i) = keys.at(key, i);
                at(key, 1, i) = values.at(key, i);
            }
        }
    }
    float& at(int64_t key, int64_t side, int64_t i) {
        const int64_t block = table[size_t(key / kBlock)], head = i / head_dim;
        const int64_t row = ((2 * block + side) * heads + head) * kBlock + key % kBlock;
        return memory[size_t(row * head_dim + i % head_dim)];
    }
};

double attended(const Cache& cache, const Matrix& q, int64_t token, int64_t head, int64_t i,
                int64_t group, double softcap, int64_t window) {
    const int64_t position = cache.num_keys - q.rows + token, kv = head / group * cache.head_dim;
    double sum = 0, total = 0;
    for (int64_t key = window > 0 ? std::max<int64_t>(0, position + 1 - window) : 0; key <= position;
         ++key) {
        double score = 0;
        for (int64_t k = 0; k < cache.head_dim; ++k) {
            score += q.at(token, head * cache.head_dim + k) * cache.keys.at(key, kv + k);
        }
        score *= 0.25;
        if (softcap > 0) score = softcap * std::tanh(score / softcap);
        total += std::exp(score);
        sum += std::exp(score) * cache.values.at(key, kv + i);
    }
    return sum / total;
}

// The last tokens of a sequence in one chunk, and each alone as it would be decoded, on one thread
// and where splits of its keys are shared out.
void check_attention(const Level& level, int64_t head_dim, int64_t group, float softcap,
                     int64_t window, int64_t num_keys = 150, int64_t num_tokens = 40) {
    Cache cache(2, head_dim, num_keys);
    const int64_t num_heads = 2 * group, width = num_heads * head_dim;
    const Matrix q(num_tokens, width, DType::kFloat32, 3, 12);
    const auto run = [&](int64_t first, int64_t last, int num_threads, std::vector<float>& out) {
        const int32_t starts[] = {0, int32_t(last - first)};
        const int32_t length = int32_t(num_keys - num_tokens + last);
        level.kernels->attention({.q = q.floats.data() + first * q.stride,
                                  .q_stride = q.stride,
                                  .kv = cache.memory.data(),
                                  .kv_shape = {2, Cache::kBlock, head_dim, DType::kFloat32},
                                  .out = out.data(),
                                  .out_stride = width,
                                  .cu_seqlens_q = starts,
                                  .seq_lens = &length,
                                  .block_table = cache.table.data(),
                                  .block_table_stride = cache.num_blocks,
                                  .num_seqs = 1,
                                  .num_heads = num_heads,
                                  .scale = 0.25f,
                                  .softcap = softcap,
                                  .window = window,
                                  .dtype = DType::kFloat32,
                                  .num_threads = num_threads});
    };
    std::vector<float> all(size_t(num_tokens * width), NAN), one(size_t(width), NAN);
    run(0, num_tokens, 1, all);
    const std::string what = level.name + " attention, head_dim " + std::to_string(head_dim);
    double worst = 0;
    for (int64_t token = 0; token < num_tokens; ++token) {
        for (int64_t i = 0; i < width; ++i) {
            const double wanted =
                attended(cache, q, token, i / head_dim, i % head_dim, group, softcap, window);
            const double error = std::fabs(all[size_t(token * width + i)] - wanted);
            worst = error <= worst ? worst : error;
        }
        for (const int num_threads : {1, 8}) {
            std::fill(one.begin(), one.end(), NAN);
            run(token, token + 1, num_threads, one);
            check(std::equal(one.begin(), one.end(), all.begin() + token * width),
                  what + ": other bits in a chunk, token " + std::to_string(token) + " on " +
                      std::to_string(num_threads) + " threads");
        }
    }
    check(worst < 1e-5, what + ": error " + std::to_string(worst));
}

void check_level(const Level& level) {
    check_row_kernels(level);
    check_attention(level, 48, 3, 0, 0);
    check_attention(level, 80, 1, 20, 0);
    check_attention(level, 128, 7, 0, 33);
    check_attention(level, 16, 2, 0, 0, 1537, 4);
    check_attention(level, 16, 3, 0, 700, 1300, 3);
    for (const DType dtype : {DType::kFloat32, DType::kBfloat16}) {
        const std::string type = dtype == DType::kFloat32 ? " float32" : " bfloat16";
        for (size_t i = 0; i < std::size(kSettings); ++i) {
            const Setting& setting = kSettings[i];
            const std::string what = level.name + type + " " + std::to_string(setting.n) + "x" +
                                     std::to_string(setting.k);
            check_linear(level, setting, dtype, what);
            for (size_t j = 0; j < std::size(kRoundings); ++j) {
                if ((i + j) % 3 != 0) continue;  // each meets sizes of every kind
                const Rounding& rounding = kRoundings[j];
                check_quantized(level, setting, dtype, rounding, what + ", " + rounding.name());
            }
        }
    }
    for (const Rounding& rounding : kRoundings) check_extremes(level, rounding);
}

bool can_run(const Level& level) {
    std::vector<std::string> present = features();
#if defined(RUNS_AS_IF)
    present.emplace_back(RUNS_AS_IF);
#endif
    return std::all_of(level.needs.begin(), level.needs.end(), [&](const std::string& need) {
        return std::find(present.begin(), present.end(), need) != present.end();
    });
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> wanted(argv + 1, argv + argc);
    for (const Level& level : levels()) {
        const auto named = std::find(wanted.begin(), wanted.end(), level.name);
        if (!can_run(level) || (argc > 1 && named == wanted.end())) continue;
        if (named != wanted.end()) wanted.erase(named);
        num_checks = 0;
        check_level(level);
        std::printf("%s: %d checks\n", level.name.c_str(), num_checks);
    }
    for (const std::string& name : wanted) std::printf("FAILED %s cannot run here\n", name.c_str());
    return num_failures == 0 && wanted.empty() ? 0 : 1;
}
