// The kernels that work row by row, against references.h.
#pragma once

#include "references.h"
#include "src/levels.h"
#include "src/philox.h"

namespace {

// What a kernel made of a matrix of `columns`, and how far from `expected` it may be.
void check_rows(const std::string& what, const std::vector<float>& out, int64_t stride,
                const Doubles& expected) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        for (size_t k = 0; k < expected[i].size(); ++k) {
            const double missed = out[i * size_t(stride) + k] - expected[i][k];
            error += missed * missed;
            norm += expected[i][k] * expected[i][k];
        }
        check(std::isnan(out[(i + 1) * size_t(stride) - 1]), what + ": written behind a row");
    }
    check(error <= 1e-10 * norm, what + ": error " + std::to_string(std::sqrt(error / norm)));
}

void check_norm(const Level& level, int64_t hidden, bool layer_norm) {
    Matrix x(5, hidden, DType::kFloat32, 3, 20), residual(5, hidden, DType::kFloat32, 2, 21);
    const Matrix weight(1, hidden, DType::kFloat32, 0, 22), bias(1, hidden, DType::kFloat32, 0, 23);
    Doubles expected = values_of(x);
    for (int64_t i = 0; i < 5; ++i) {
        auto& row = expected[size_t(i)];
        double mean = 0, variance = 0;
        for (int64_t k = 0; k < hidden; ++k) {
            row[size_t(k)] = x.at(i, k) + residual.at(i, k);  // as it is stored
            mean += layer_norm ? row[size_t(k)] / double(hidden) : 0;
        }
        for (double value : row) variance += (value - mean) * (value - mean) / double(hidden);
        for (int64_t k = 0; k < hidden; ++k) {
            row[size_t(k)] = (row[size_t(k)] - mean) / std::sqrt(variance + 1e-5) * weight.at(0, k);
            row[size_t(k)] += layer_norm ? bias.at(0, k) : 0;
        }
    }
    std::vector<float> out(size_t(5 * (hidden + 1)), NAN);
    level.kernels->norm({.x = x.floats.data(),
                         .x_stride = x.stride,
                         .residual = residual.floats.data(),
                         .residual_stride = residual.stride,
                         .weight = weight.data(),
                         .bias = layer_norm ? bias.data() : nullptr,
                         .out = out.data(),
                         .out_stride = hidden + 1,
                         .rows = 5,
                         .hidden = hidden,
                         .eps = 1e-5f,
                         .layer_norm = layer_norm,
                         .dtype = DType::kFloat32,
                         .num_threads = 1});
    check_rows(level.name + " norm of " + std::to_string(hidden), out, hidden + 1, expected);
}

void check_activation(const Level& level, Activation activation, bool gated) {
    const int64_t size = 37;
    const Matrix x(4, 2 * size, DType::kFloat32, 1, 24);
    Doubles expected;
    for (int64_t i = 0; i < 4; ++i) {
        expected.emplace_back();
        for (int64_t k = 0; k < size; ++k) {
            const double up = gated ? x.at(i, size + k) : 1;
            expected.back().push_back(activated(activation, x.at(i, k)) * up);
        }
    }
    std::vector<float> out(size_t(4 * (size + 1)), NAN);
    level.kernels->activate({.x = x.data(),
                             .x_stride = x.stride,
                             .out = out.data(),
                             .out_stride = size + 1,
                             .rows = 4,
                             .size = size,
                             .activation = activation,
                             .gated = gated,
                             .dtype = DType::kFloat32,
                             .num_threads = 1});
    check_rows(level.name + " activation", out, size + 1, expected);
}

// Heads of q and k are normed where there are weights, then rotated in their first columns.
void check_rope(const Level& level, int64_t head_dim, int64_t rotary_dim, bool has_norm) {
    Matrix qkv(6, 5 * head_dim, DType::kFloat32, 1, 25);  // 3 heads of q, one of k and of v
    const Matrix table(9, rotary_dim, DType::kFloat32, 0, 26);
    const Matrix weight(1, head_dim, DType::kFloat32, 0, 27);
    const int32_t positions[] = {8, 0, 3, 3, 7, 1};
    Doubles expected = values_of(qkv);
    for (size_t i = 0; i < 6; ++i) {
        for (int64_t head = 0; head < 4; ++head) {
            double* x = expected[i].data() + head * head_dim;
            double squares = 0;
            for (int64_t k = 0; k < head_dim; ++k) squares += x[k] * x[k] / double(head_dim);
            for (int64_t k = 0; has_norm && k < head_dim; ++k) {
                x[k] *= weight.at(0, k) / std::sqrt(squares + 1e-6);
            }
            const int64_t half = rotary_dim / 2;
            for (int64_t k = 0; k < half; ++k) {
                const double c = table.at(positions[i], k), s = table.at(positions[i], half + k);
                const double first = x[k], second = x[half + k];
                x[k] = first * c - second * s;
                x[half + k] = second * c + first * s;
            }
        }
    }
    const void* norm = has_norm ? weight.data() : nullptr;
    level.kernels->qk_norm_rope({.qkv = qkv.floats.data(),
                                 .qkv_stride = qkv.stride,
                                 .num_tokens = 6,
                                 .num_heads = 3,
                                 .num_kv_heads = 1,
                                 .head_dim = head_dim,
                                 .positions = positions,
                                 .cos_sin = table.floats.data(),
                                 .rotary_dim = rotary_dim,
                                 .q_norm = norm,
                                 .k_norm = norm,
                                 .eps = 1e-6f,
                                 .dtype = DType::kFloat32,
                                 .num_threads = 1});
    check_rows(level.name + " rope", qkv.floats, qkv.stride, expected);
}

// A draw as the op `sample` defines it, by a full sort.
int32_t drawn(const Matrix& logits, int64_t row, float temperature, int64_t top_k, double top_p,
              const NoiseKey& key) {
    std::vector<std::pair<float, int32_t>> order;
    float maximum = -INFINITY;
    for (int64_t i = 0; i < logits.columns; ++i) maximum = std::max(maximum, logits.at(row, i));
    for (int64_t i = 0; i < logits.columns; ++i) {
        order.emplace_back(-(logits.at(row, i) - maximum) * (1.0f / temperature), int32_t(i));
    }
    std::sort(order.begin(), order.end());
    if (top_k > 0) order.resize(size_t(std::min<int64_t>(top_k, logits.columns)));
    double total = 0, before = 0, best = -INFINITY;
    for (const auto& [fall, id] : order) total += std::exp(-double(fall));
    int32_t token = -1;
    for (const auto& [fall, id] : order) {
        if (before >= top_p * total) break;
        before += std::exp(-double(fall));
        const double score = -double(fall) + gumbel_noise(key, uint32_t(id));
        if (score > best) {
            best = score;
            token = id;
        }
    }
    return token;
}

void check_sampling(const Level& level, int64_t vocab, float temperature, int32_t top_k,
                    float top_p) {
    constexpr int64_t kRows = 12;
    const Matrix logits(kRows, vocab, DType::kFloat32, 3, 28);
    const std::vector<float> temperatures(kRows, temperature), top_ps(kRows, top_p);
    const std::vector<float> min_ps(kRows, 0.0f);
    const std::vector<int32_t> top_ks(kRows, top_k);
    std::vector<int64_t> seeds;
    std::vector<int32_t> indices, tokens(kRows, 99);
    for (int64_t i = 0; i < kRows; ++i) {
        seeds.push_back((i - 3) * 0x123456789abc);
        indices.push_back(int32_t(3 * i));
    }
    sample(level.kernels->sampling, {.logits = logits.floats.data(),
                                     .stride = logits.stride,
                                     .rows = kRows,
                                     .vocab = vocab,
                                     .temperature = temperatures.data(),
                                     .top_k = top_ks.data(),
                                     .top_p = top_ps.data(),
                                     .min_p = min_ps.data(),
                                     .seeds = seeds.data(),
                                     .token_index = indices.data(),
                                     .has_filters = top_k > 0 || top_p < 1,
                                     .tokens = tokens.data(),
                                     .num_threads = 1});
    bool is_same = true;
    for (int64_t i = 0; i < kRows; ++i) {
        const NoiseKey key{uint64_t(seeds[size_t(i)]), uint32_t(indices[size_t(i)])};
        // Nothing is likelier than the best of a sharp row.
        const int32_t wanted = temperature > 0 ? drawn(logits, i, temperature, top_k, top_p, key)
                                               : drawn(logits, i, 1.0f, 1, 1.0, key);
        is_same = is_same && tokens[size_t(i)] == wanted;
    }
    check(is_same, level.name + " sampling of " + std::to_string(vocab) + ": other tokens");
}

void check_row_kernels(const Level& level) {
    for (const int64_t hidden : {1, 16, 37, 900}) {
        check_norm(level, hidden, false);
        check_norm(level, hidden, true);
    }
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kGelu,
                                        Activation::kRelu, Activation::kNone}) {
        check_activation(level, activation, true);
        check_activation(level, activation, false);
    }
    check_rope(level, 64, 64, false);
    check_rope(level, 80, 32, true);
    check_rope(level, 6, 2, true);
    for (const int64_t vocab : {1, 5, 64, 1003}) {
        check_sampling(level, vocab, 0.0f, 0, 1.0f);
        check_sampling(level, vocab, 0.7f, 0, 1.0f);
        check_sampling(level, vocab, 1.5f, 50, 1.0f);
        check_sampling(level, vocab, 1.0f, 0, 0.9f);
        check_sampling(level, vocab, 0.7f, 20, 0.8f);
    }
}

}  // namespace
