// Weights to codes and back: see QuantizedShape for the layout.
#include "arena.h"
#include "code_tables.h"
#include "rounding_avx512.h"

namespace hal::cpu {
namespace {

uint8_t* strip_of(const void* weight, const QuantizedShape& shape, int64_t row) {
    return static_cast<uint8_t*>(const_cast<void*>(weight)) + row / kLanes * shape.strip_bytes();
}

// Codes of 4 columns of 8 bits of one row into the 64 bytes at `to`.
void store_unit8(Codes codes, uint32_t four, uint8_t* to, int64_t lane) {
    if (codes == Codes::kDots) {
        // Turning the highest bit over adds 128 to a code in two's complement.
        reinterpret_cast<uint32_t*>(to)[lane] = four ^ 0x80808080u;
        return;
    }
    uint16_t* pairs = reinterpret_cast<uint16_t*>(to) + lane / 4 * 8 + lane % 4;
    pairs[0] = uint16_t(four);
    pairs[4] = uint16_t(four >> 16);
}

// Every second byte of 8, of 4 bits each, side by side.
uint32_t every_second(uint64_t eight) {
    eight &= 0x000f000f000f000f;
    eight = (eight | eight >> 12) & 0x000000ff000000ff;
    return uint32_t((eight | eight >> 24) & 0xffff);
}

// Codes of 8 columns of 4 bits of one row into the 64 bytes at `to`.
void store_unit4(Codes codes, uint64_t eight, uint8_t* to, int64_t lane) {
    const uint32_t dots = uint32_t(eight) | uint32_t(eight >> 32) << 4;
    const uint32_t decoded = every_second(eight) | every_second(eight >> 8) << 16;
    reinterpret_cast<uint32_t*>(to)[lane] = codes == Codes::kDots ? dots : decoded;
}

void store_row8(const RoundedRow& row, const QuantizedShape& shape, uint8_t* strip, int64_t lane) {
    reinterpret_cast<uint32_t*>(strip)[lane] = row.scales[0];
    const uint32_t* units = reinterpret_cast<const uint32_t*>(row.codes);
    for (int64_t u = 0; u < shape.units(); ++u) {
        store_unit8(shape.codes, units[u], strip + shape.codes_at(u), lane);
    }
}

void store_row4(const RoundedRow& row, const QuantizedShape& shape, uint8_t* strip, int64_t lane) {
    for (int64_t group = 0; group < shape.groups(); ++group) {
        uint16_t* scales = reinterpret_cast<uint16_t*>(strip + shape.scales_at(group));
        scales[lane] = uint16_t(row.scales[group] >> 16);
        if (shape.has_zeros) strip[shape.zeros_at(group) + lane] = row.zeros[group];
    }
    const uint64_t* pairs = reinterpret_cast<const uint64_t*>(row.codes);
    for (int64_t u = 0; u < shape.units(); u += 2) {
        store_unit4(shape.codes, pairs[u / 2], strip + shape.codes_at(u), lane);
    }
}

bool round_row8(const FloatRow& row, const QuantizedShape& shape, const RoundedRow& to) {
    const int64_t padded = 4 * shape.units();
    if (shape.codes == Codes::kDecodedFp8) return round_fp8(row, padded, to);
    const bool finite = round8(row, padded, to);
    if (shape.codes == Codes::kDecoded) {
        for (int64_t k = 0; k < padded; ++k) {
            const int code = static_cast<int8_t>(to.codes[k]);
            to.codes[k] = uint8_t(code < 0 ? 0x80 | -code : code);
        }
    }
    return finite;
}

bool quantize_row(const QuantizeArgs& args, int64_t row, const RoundedRow& rounded) {
    const QuantizedShape& shape = args.shape;
    const int64_t element = args.src_dtype == DType::kFloat32 ? 4 : 2;
    const FloatRow source{static_cast<const char*>(args.src) + row * args.src_stride * element,
                          args.src_dtype, shape.k};
    const int64_t to = stored_row(args.first_row + row, shape.n, args.gated);
    uint8_t* strip = strip_of(args.dst, shape, to);
    if (shape.is_int4()) {
        const bool finite = round4(source, 4 * shape.units(), shape.group, shape.has_zeros, rounded);
        store_row4(rounded, shape, strip, to % kLanes);
        return finite;
    }
    const bool finite = round_row8(source, shape, rounded);
    store_row8(rounded, shape, strip, to % kLanes);
    return finite;
}

// Column k of one lane of a strip of 8 bits a code.
float value8(const QuantizedShape& shape, const uint8_t* strip, int64_t lane, int64_t k) {
    const float scale = reinterpret_cast<const float*>(strip)[lane];
    const uint8_t* unit = strip + shape.codes_at(k / 4);
    if (shape.codes == Codes::kDots) {
        return float(unit[4 * lane + k % 4] - int(shape.offset())) * scale;
    }
    const int code = unit[lane / 4 * 16 + k % 4 / 2 * 8 + lane % 4 * 2 + k % 2];
    return as_float(uint32_t(bf16_of_code(shape.codes, code)) << 16) * scale;
}

// The same of 4 bits.
float value4(const QuantizedShape& shape, const uint8_t* strip, int64_t lane, int64_t k) {
    const int64_t group = k / shape.group, c = k % 8;
    const uint32_t scale = reinterpret_cast<const uint16_t*>(strip + shape.scales_at(group))[lane];
    const int zero = shape.has_zeros ? strip[shape.zeros_at(group) + lane] : 8;
    const uint8_t* unit = strip + shape.codes_at(k / 8 * 2) + 4 * lane;
    const bool for_dots = shape.codes == Codes::kDots;
    const int pair = for_dots ? unit[c % 4] : unit[c % 2 * 2 + c / 4];
    const int shift = int(for_dots ? c / 4 * 4 : c % 4 / 2 * 4);
    return float((pair >> shift & 15) - zero) * as_float(scale << 16);
}

void gather_row(const QuantizedGatherArgs& args, int64_t i) {
    const QuantizedShape& shape = args.shape;
    const int64_t row = args.ids[i], lane = row % kLanes;
    const bool known = row >= 0 && row < shape.n;
    const uint8_t* strip = known ? strip_of(args.weight, shape, row) : nullptr;
    const auto value = shape.is_int4() ? value4 : value8;
    alignas(64) float values[kLanes] = {};
    for (int64_t k = 0; k < shape.k; k += kLanes) {
        for (int64_t j = 0; j < kLanes && k + j < shape.k; ++j) {
            values[j] = known ? value(shape, strip, lane, k + j) : __builtin_nanf("");
        }
        store(args.out, args.out_dtype, i * args.out_stride + k, load(values),
              tail_mask(shape.k - k));
    }
}

}  // namespace

int64_t quantize_rows(const QuantizeArgs& args) {
    const int64_t groups = ceil_div(args.rows, kLanes);
    int64_t num_bad = 0;
    for_each_range(args.num_threads, groups, [&](const Range& range) {
        Arena arena;
        const int64_t padded = 4 * args.shape.units();
        const RoundedRow rounded = RoundedRow::in(arena.reserve(RoundedRow::bytes(padded)), padded);
        const int64_t last = range.end * kLanes;
        const int64_t end = last < args.rows ? last : args.rows;
        for (int64_t row = range.begin * kLanes; row < end; ++row) {
            if (!quantize_row(args, row, rounded)) {
                __atomic_fetch_add(&num_bad, 1, __ATOMIC_RELAXED);
            }
        }
    });
    return num_bad;
}

void gather_quantized_rows(const QuantizedGatherArgs& args) {
    for_each(args.num_threads, args.num_ids, true, [&](int64_t i) { gather_row(args, i); });
}

}  // namespace hal::cpu
