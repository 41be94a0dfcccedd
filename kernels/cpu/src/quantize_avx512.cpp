// Weights to codes and back: see QuantizedShape for the layout.
#include "arena.h"
#include "rounding_avx512.h"

namespace hal::cpu {
namespace {

uint8_t* strip_of(const void* weight, const QuantizedShape& shape, int64_t row) {
    return static_cast<uint8_t*>(const_cast<void*>(weight)) + row / kLanes * shape.strip_bytes();
}

void store_row8(const RoundedRow& row, const QuantizedShape& shape, uint8_t* strip, int64_t lane) {
    reinterpret_cast<uint32_t*>(strip)[lane] = row.scales[0];
    const uint32_t* units = reinterpret_cast<const uint32_t*>(row.codes);
    uint32_t* packed = reinterpret_cast<uint32_t*>(strip + shape.codes_at(0)) + lane;
    // Turning the highest bit over adds 128 to a code in two's complement.
    for (int64_t u = 0; u < shape.units(); ++u) packed[u * kLanes] = units[u] ^ 0x80808080u;
}

void store_row4(const RoundedRow& row, const QuantizedShape& shape, uint8_t* strip, int64_t lane) {
    for (int64_t group = 0; group < shape.groups(); ++group) {
        uint16_t* scales = reinterpret_cast<uint16_t*>(strip + shape.scales_at(group));
        scales[lane] = uint16_t(row.scales[group] >> 16);
        if (shape.has_zeros) strip[shape.zeros_at(group) + lane] = row.zeros[group];
    }
    const uint32_t* units = reinterpret_cast<const uint32_t*>(row.codes);
    for (int64_t u = 0; u < shape.units(); u += 2) {
        uint32_t* packed = reinterpret_cast<uint32_t*>(strip + shape.codes_at(u));
        packed[lane] = units[u] | units[u + 1] << 4;
    }
}

bool quantize_row(const QuantizeArgs& args, int64_t row, const RoundedRow& rounded) {
    const QuantizedShape& shape = args.shape;
    const int64_t element = args.src_dtype == DType::kFloat32 ? 4 : 2;
    const FloatRow source{static_cast<const char*>(args.src) + row * args.src_stride * element,
                          args.src_dtype, shape.k};
    const int64_t to = stored_row(args.first_row + row, shape.n, args.gated);
    const int64_t padded = 4 * shape.units();
    uint8_t* strip = strip_of(args.dst, shape, to);
    if (shape.is_int4()) {
        const bool finite = round4(source, padded, shape.group, shape.has_zeros, rounded);
        store_row4(rounded, shape, strip, to % kLanes);
        return finite;
    }
    const bool finite = round8(source, padded, rounded);
    store_row8(rounded, shape, strip, to % kLanes);
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
    const int zero = shape.has_zeros ? strip[shape.zeros_at(k / shape.group) + lane] : 8;
    return float(code - zero) * as_float(scale << 16);
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
        const int64_t padded = 4 * args.shape.units();
        const RoundedRow rounded = RoundedRow::in(arena.reserve(RoundedRow::bytes(padded)), padded);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t end = (group + 1) * kLanes < args.rows ? (group + 1) * kLanes : args.rows;
            for (int64_t row = group * kLanes; row < end; ++row) {
                if (!quantize_row(args, row, rounded)) ++num_bad;
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
