// Values, roundings and scalar products in double that the kernels are checked against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "src/kernels.h"

using namespace hal::cpu;

namespace {

int num_checks = 0;
int num_failures = 0;

void check(bool is_ok, const std::string& what) {
    ++num_checks;
    if (!is_ok && ++num_failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

Bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

float from_bf16(Bf16 value) { return from_bits(uint32_t(value.bits) << 16); }

// Values as a kernel gets them: float32, or bfloat16 whose values `floats` repeats.
struct Matrix {
    int64_t rows;
    int64_t columns;
    int64_t stride;
    DType dtype;
    std::vector<float> floats;
    std::vector<Bf16> halves;

    Matrix(int64_t rows, int64_t columns, DType dtype, int64_t gap, unsigned seed)
        : rows(rows), columns(columns), stride(columns + gap), dtype(dtype),
          floats(size_t(rows * stride), NAN), halves(floats.size(), Bf16{0x7fc0}) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t k = 0; k < columns; ++k) {
                Bf16& half = halves[size_t(i * stride + k)];
                const float value = normal(random);
                half = to_bf16(value);
                floats[size_t(i * stride + k)] = dtype == DType::kFloat32 ? value : from_bf16(half);
            }
        }
    }
    const void* data() const {
        return dtype == DType::kFloat32 ? static_cast<const void*>(floats.data()) : halves.data();
    }
    float at(int64_t row, int64_t column) const { return floats[size_t(row * stride + column)]; }
};

double activated(Activation activation, double x) {
    switch (activation) {
        case Activation::kSilu:
            return x / (1 + std::exp(-x));
        case Activation::kGeluTanh:
            return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::kGelu:
            return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        case Activation::kRelu:
            return x > 0 ? x : 0;
        case Activation::kNone:
            break;
    }
    return x;
}

using Doubles = std::vector<std::vector<double>>;

// Where row n of a weight stands among the stored rows.
int64_t stored_row(int64_t row, int64_t rows, bool gated) {
    if (!gated) return row;
    const int64_t half = rows / 2, up = row >= half ? 1 : 0, inner = row - up * half;
    return (inner / 16 * 2 + up) * 16 + inner % 16;
}

// activation(x . weight + bias), or activation(gate) * up.
Doubles expected(const Doubles& x, const Doubles& weight, const Matrix& bias, Activation activation,
                 bool gated) {
    const int64_t n = int64_t(weight.size());
    Doubles out;
    for (const auto& token : x) {
        std::vector<double> sums;
        for (int64_t row = 0; row < n; ++row) {
            double sum = bias.at(0, stored_row(row, n, gated));
            for (size_t k = 0; k < token.size(); ++k) sum += token[k] * weight[size_t(row)][k];
            sums.push_back(sum);
        }
        for (int64_t row = 0; gated && row < n / 2; ++row) {
            sums[size_t(row)] = activated(activation, sums[size_t(row)]) * sums[size_t(row + n / 2)];
        }
        if (gated) sums.resize(size_t(n / 2));
        for (double& sum : sums) sum = gated ? sum : activated(activation, sum);
        out.push_back(sums);
    }
    return out;
}

Doubles values_of(const Matrix& matrix) {
    Doubles out;
    for (int64_t i = 0; i < matrix.rows; ++i) {
        out.emplace_back();
        for (int64_t k = 0; k < matrix.columns; ++k) out.back().push_back(matrix.at(i, k));
    }
    return out;
}

// How values are rounded: a code and a scale for each group of them, as hal/weights.py defines it.
struct Rounding {
    int64_t group;  // 0: the whole row, in 8 bits
    bool has_zeros = false;
    Codes codes = Codes::kDots;

    std::string name() const {
        return "group " + std::to_string(group) + (has_zeros ? " with zeros" : "") +
               (codes == Codes::kDots ? "" : codes == Codes::kDecodedFp8 ? " fp8" : " decoded");
    }
};

const Rounding kRoundings[] = {
    {0},
    {32},
    {64},
    {128},
    {32, true},
    {64, true},
    {128, true},
    {0, false, Codes::kDecoded},
    {0, false, Codes::kDecodedFp8},
    {32, false, Codes::kDecoded},
    {128, false, Codes::kDecoded},
    {32, true, Codes::kDecoded},
    {64, true, Codes::kDecoded},
};

// A run of values rounded to int4 codes that count from a zero point.
void round_from_zero(const Matrix& from, int64_t row, int64_t first, int64_t end,
                     std::vector<double>& to) {
    float high = 0, low = 0;
    for (int64_t k = first; k < end; ++k) {
        high = std::max(high, from.at(row, k));
        low = std::min(low, from.at(row, k));
    }
    const float scale = from_bf16(to_bf16(high / 15.0f - low / 15.0f)), inverse = 1.0f / scale;
    const float zero = std::min(std::nearbyint(-low * inverse), 15.0f);
    for (int64_t k = first; k < end; ++k) {
        const float code = std::nearbyint(from.at(row, k) * inverse) + zero;
        to.push_back(double(std::clamp(code, 0.0f, 15.0f) - zero) * double(scale));
    }
}

// The e4m3 nearest to a value, to even in the middle.
double nearest_fp8(float value) {
    const double magnitude = std::fabs(double(value));
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    const double step = std::ldexp(1.0, std::max(exponent - 1, -6) - 3);
    return std::copysign(std::min(std::nearbyint(magnitude / step) * step, 448.0), double(value));
}

void round_to_fp8(const Matrix& from, int64_t row, std::vector<double>& to) {
    float largest = 0;
    for (int64_t k = 0; k < from.columns; ++k) largest = std::max(largest, std::fabs(from.at(row, k)));
    const float scale = largest / 448.0f, inverse = 448.0f / largest;
    for (int64_t k = 0; k < from.columns; ++k) {
        to.push_back(nearest_fp8(from.at(row, k) * inverse) * double(scale));
    }
}

// A run of values rounded to codes times their scale.
void round_run(const Matrix& from, int64_t row, int64_t first, int64_t end, bool is_int4,
               std::vector<double>& to) {
    float extreme = 0;
    for (int64_t k = first; k < end; ++k) {
        const float value = from.at(row, k);
        const float larger = std::fabs(value) - std::fabs(extreme);
        if (larger > 0 || (larger == 0 && value > 0)) extreme = value;
    }
    const float scale = is_int4 ? from_bf16(to_bf16(extreme / -8.0f)) : std::fabs(extreme) / 127.0f;
    const float inverse = is_int4 ? 1.0f / scale : 127.0f / std::fabs(extreme);
    for (int64_t k = first; k < end; ++k) {
        const float code = std::nearbyint(from.at(row, k) * inverse);
        to.push_back(double(is_int4 ? std::clamp(code, -8.0f, 7.0f) : code) * double(scale));
    }
}

Doubles rounded(const Matrix& from, int64_t group, bool is_int4, bool has_zeros = false) {
    Doubles out;
    for (int64_t row = 0; row < from.rows; ++row) {
        out.emplace_back();
        for (int64_t k = 0; k < from.columns; k += group) {
            const int64_t end = std::min(k + group, from.columns);
            if (has_zeros) {
                round_from_zero(from, row, k, end, out.back());
            } else {
                round_run(from, row, k, end, is_int4, out.back());
            }
        }
    }
    return out;
}

Doubles rounded_weight(const Matrix& from, const Rounding& rounding) {
    if (rounding.codes != Codes::kDecodedFp8) {
        const bool is_int4 = rounding.group != 0;
        return rounded(from, is_int4 ? rounding.group : from.columns, is_int4, rounding.has_zeros);
    }
    Doubles out;
    for (int64_t row = 0; row < from.rows; ++row) {
        out.emplace_back();
        round_to_fp8(from, row, out.back());
    }
    return out;
}

// What a product takes x for.
Doubles rounded_x(const Matrix& x, const Rounding& rounding) {
    if (rounding.codes != Codes::kDots) return values_of(x);
    return rounded(x, rounding.group == 0 ? x.columns : 32, false);
}

}  // namespace
