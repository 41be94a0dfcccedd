// Weights to codes and back: see QuantizedShape for the layout.
#include "arena.h"
#include "quantize_avx512.h"

namespace hal::cpu {
namespace {

struct Scale4 {
    uint16_t bits;  // of the bfloat16 scale
    float inverse;
};

// Rounded to nearest even in integers: the instruction would flush a denormal scale.
Scale4 scale4(float high, float low) {
    const float extreme = high >= -low ? high : low;
    if ((extreme < 0 ? -extreme : extreme) <= kSmallest) return {0, 0.0f};
    const float exact = extreme / -8.0f;
    const uint32_t bits = uint32_t(_mm_cvtsi128_si32(_mm_castps_si128(_mm_set_ss(exact))));
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return {uint16_t(rounded), 1.0f / as_float(rounded << 16)};
}

void store_codes(uint8_t* to, __m512i codes, int64_t offset) {
    const __m512i unsigned_codes = _mm512_add_epi32(codes, _mm512_set1_epi32(int(offset)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(unsigned_codes));
}

// Fills codes with a byte for each column and padding; false if a value is not finite.
bool round8(const FloatRow& row, int64_t padded, uint8_t* codes, float* scale) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t k = 0; k < row.columns; k += kLanes) {
        largest = _mm512_max_epu32(largest, magnitude_bits(row.load16(k)));
    }
    const Scale8 found = scale8(_mm512_reduce_max_epu32(largest));
    *scale = found.scale;
    for (int64_t k = 0; k < padded; k += kLanes) {
        store_codes(codes + k, rounded_codes(row.load16(k), found.inverse), 128);
    }
    return found.scale == found.scale;
}

// strip: where the scales go, as lane `lane` of each vector of them.
bool round4(const FloatRow& row, const QuantizedShape& shape, uint8_t* codes, uint8_t* strip,
            int64_t lane) {
    const __m512i low_code = _mm512_set1_epi32(-8), high_code = _mm512_set1_epi32(7);
    __m512i largest = _mm512_setzero_si512();
    const int64_t padded = 4 * shape.units(), group = shape.group;
    for (int64_t first = 0; first < padded; first += group) {
        const int64_t end = first + group < padded ? first + group : padded;
        __m512 high = row.load16(first), low = high;
        for (int64_t k = first; k < end; k += kLanes) {
            const __m512 v = row.load16(k);
            high = _mm512_max_ps(high, v);
            low = _mm512_min_ps(low, v);
            largest = _mm512_max_epu32(largest, magnitude_bits(v));
        }
        const Scale4 scale = scale4(_mm512_reduce_max_ps(high), _mm512_reduce_min_ps(low));
        reinterpret_cast<uint16_t*>(strip + shape.scales_at(first / group))[lane] = scale.bits;
        for (int64_t k = first; k < end; k += kLanes) {
            const __m512i code = rounded_codes(row.load16(k), scale.inverse);
            const __m512i held = _mm512_max_epi32(_mm512_min_epi32(code, high_code), low_code);
            store_codes(codes + k, held, 8);
        }
    }
    return _mm512_reduce_max_epu32(largest) < kInfinity;
}

int64_t stored_row(const QuantizeArgs& args, int64_t row) {
    row += args.first_row;
    if (!args.gated) return row;
    const int64_t half = args.shape.n / 2;
    const int64_t up = row >= half ? 1 : 0;
    row -= up * half;
    return (row / kLanes * 2 + up) * kLanes + row % kLanes;
}

uint8_t* strip_of(const void* weight, const QuantizedShape& shape, int64_t row) {
    return static_cast<uint8_t*>(const_cast<void*>(weight)) + row / kLanes * shape.strip_bytes();
}

bool quantize_row(const QuantizeArgs& args, int64_t row, uint8_t* codes) {
    const QuantizedShape& shape = args.shape;
    const int64_t element = args.src_dtype == DType::kFloat32 ? 4 : 2;
    const FloatRow source{static_cast<const char*>(args.src) + row * args.src_stride * element,
                          args.src_dtype, shape.k};
    const int64_t to = stored_row(args, row), lane = to % kLanes;
    uint8_t* strip = strip_of(args.dst, shape, to);
    const uint32_t* units = reinterpret_cast<const uint32_t*>(codes);
    if (shape.is_int4()) {
        const bool finite = round4(source, shape, codes, strip, lane);
        for (int64_t u = 0; u < shape.units(); u += 2) {
            uint32_t* packed = reinterpret_cast<uint32_t*>(strip + shape.codes_at(u));
            packed[lane] = units[u] | units[u + 1] << 4;
        }
        return finite;
    }
    float* scale = reinterpret_cast<float*>(strip) + lane;
    const bool finite = round8(source, 4 * shape.units(), codes, scale);
    uint32_t* packed = reinterpret_cast<uint32_t*>(strip + shape.codes_at(0)) + lane;
    for (int64_t u = 0; u < shape.units(); ++u) packed[u * kLanes] = units[u];
    return finite;
}

// Column k of one lane of a strip.
float value_at(const QuantizedShape& shape, const uint8_t* strip, int64_t lane, int64_t k) {
    if (!shape.is_int4()) {
        const int code = strip[shape.codes_at(k / 4) + 4 * lane + k % 4];
        return float(code - int(shape.offset())) * reinterpret_cast<const float*>(strip)[lane];
    }
    const uint8_t* scales = strip + shape.scales_at(k / shape.group);
    const uint32_t scale = reinterpret_cast<const uint16_t*>(scales)[lane];
    const int pair = strip[shape.codes_at(k / 8 * 2) + 4 * lane + k % 4];
    const int code = pair >> (k % 8 / 4 * 4) & 15;
    return float(code - int(shape.offset())) * as_float(scale << 16);
}

void gather_row(const QuantizedGatherArgs& args, int64_t i) {
    const QuantizedShape& shape = args.shape;
    const int64_t row = args.ids[i], lane = row % kLanes;
    const bool known = row >= 0 && row < shape.n;
    const uint8_t* strip = known ? strip_of(args.weight, shape, row) : nullptr;
    alignas(64) float values[kLanes] = {};
    for (int64_t k = 0; k < shape.k; k += kLanes) {
        for (int64_t j = 0; j < kLanes && k + j < shape.k; ++j) {
            values[j] = known ? value_at(shape, strip, lane, k + j) : __builtin_nanf("");
        }
        store(args.out, args.out_dtype, i * args.out_stride + k, load(values),
              tail_mask(shape.k - k));
    }
}

}  // namespace

int64_t quantize_rows(const QuantizeArgs& args) {
    const int64_t groups = ceil_div(args.rows, kLanes);
    int64_t num_bad = 0;
#pragma omp parallel num_threads(args.num_threads) reduction(+ : num_bad)
    {
        Arena arena;
        uint8_t* codes = reinterpret_cast<uint8_t*>(arena.reserve(4 * args.shape.units() + 64));
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t end = (group + 1) * kLanes < args.rows ? (group + 1) * kLanes : args.rows;
            for (int64_t row = group * kLanes; row < end; ++row) {
                if (!quantize_row(args, row, codes)) ++num_bad;
            }
        }
    }
    return num_bad;
}

void gather_quantized_rows(const QuantizedGatherArgs& args) {
#pragma omp parallel for num_threads(args.num_threads) schedule(static) if (args.num_ids > 1)
    for (int64_t i = 0; i < args.num_ids; ++i) gather_row(args, i);
}

}  // namespace hal::cpu
