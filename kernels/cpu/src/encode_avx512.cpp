// Weights to the codes that linear_decoded_avx512.cpp reads, and back: see DecodedShape.
#include "arena.h"
#include "code_tables.h"
#include "rounding_avx512.h"

namespace hal::cpu {
namespace {

// Where a byte of codes stands in the 64 of its unit, and in int4 which half of it holds the code.
struct Place {
    int64_t byte;
    int shift;
};

Place place_of(const DecodedShape& shape, int64_t lane, int64_t column) {
    if (shape.is_int4()) {
        const int64_t pair = column / 2;
        return {4 * lane + column % 2 * 2 + pair / 2, int(pair % 2 * 4)};
    }
    return {lane / 4 * 16 + column / 2 * 8 + lane % 4 * 2 + column % 2, 0};
}

// One row of a panel: where its scale, zero point and codes of a group are.
struct StoredRow {
    const DecodedShape& shape;
    uint8_t* panel;
    int64_t strips;
    int64_t strip;
    int64_t lane;

    StoredRow(const DecodedShape& shape, const void* weight, int64_t row)
        : shape(shape),
          panel(static_cast<uint8_t*>(const_cast<void*>(weight)) +
                shape.panel_at(row / kPanelRows)),
          strips(shape.panel_strips(row / kPanelRows)),
          strip(row % kPanelRows / kLanes),
          lane(row % kLanes) {}

    uint8_t* scale(int64_t group) const {
        const int64_t bytes = shape.is_int4() ? 2 : 4;
        return panel + shape.group_at(group, strips) + (strip * kLanes + lane) * bytes;
    }
    uint8_t* zero(int64_t group) const {
        return panel + shape.group_at(group, strips) + (2 * strips + strip) * kLanes + lane;
    }
    uint8_t* unit(int64_t column) const {
        const int64_t group = column / shape.depth();
        const int64_t unit = (column - group * shape.depth()) / shape.unit_columns();
        return panel + shape.codes_at(group, strips) + 64 * (unit * strips + strip);
    }
};

bool round_row(const DecodedShape& shape, const FloatRow& source, const RoundedRow& to) {
    const int64_t padded = shape.padded_columns();
    switch (shape.codes) {
        case Codes::kFp8:
            return round_fp8(source, padded, to);
        case Codes::kInt8: {
            const bool finite = round8(source, padded, to);
            for (int64_t k = 0; k < padded; ++k) {
                const int code = static_cast<int8_t>(to.codes[k]);
                to.codes[k] = code < 0 ? uint8_t(0x80 | -code) : uint8_t(code);
            }
            return finite;
        }
        case Codes::kInt4:
        case Codes::kInt4Zeros:
            break;
    }
    return round4(source, padded, shape.group, shape.has_zeros(), to);
}

void store_row(const RoundedRow& row, const StoredRow& to) {
    const DecodedShape& shape = to.shape;
    for (int64_t group = 0; group < shape.groups(); ++group) {
        const uint16_t upper = uint16_t(row.scales[group] >> 16);
        if (shape.is_int4()) __builtin_memcpy(to.scale(group), &upper, sizeof upper);
        if (!shape.is_int4()) __builtin_memcpy(to.scale(group), row.scales + group, 4);
        if (shape.has_zeros()) *to.zero(group) = row.zeros[group];
    }
    for (int64_t k = 0; k < shape.padded_columns(); k += shape.unit_columns()) {
        uint8_t* unit = to.unit(k);
        for (int64_t c = 0; c < shape.unit_columns(); ++c) {
            const Place place = place_of(shape, to.lane, c);
            // In int4 the lower half comes first and clears the byte.
            const uint8_t kept = place.shift == 0 ? 0 : unit[place.byte];
            unit[place.byte] = uint8_t(kept | row.codes[k + c] << place.shift);
        }
    }
}

bool encode_row(const EncodeArgs& args, int64_t row, const RoundedRow& rounded) {
    const int64_t element = args.src_dtype == DType::kFloat32 ? 4 : 2;
    const FloatRow source{static_cast<const char*>(args.src) + row * args.src_stride * element,
                          args.src_dtype, args.shape.k};
    const bool finite = round_row(args.shape, source, rounded);
    const int64_t to = stored_row(args.first_row + row, args.shape.n, args.gated);
    store_row(rounded, {args.shape, args.dst, to});
    return finite;
}

float value_at(const StoredRow& row, int64_t k) {
    const DecodedShape& shape = row.shape;
    const int64_t group = k / shape.depth();
    const Place place = place_of(shape, row.lane, k % shape.unit_columns());
    const int code = row.unit(k)[place.byte];
    if (!shape.is_int4()) {
        const ByteTable& table = table_of(shape.codes);
        const uint32_t high = table.high[code & 0x7f] | (code & 0x80);
        float scale;
        __builtin_memcpy(&scale, row.scale(group), sizeof scale);
        return as_float(high << 24 | uint32_t(table.low[code & 0x7f]) << 16) * scale;
    }
    uint16_t scale;
    __builtin_memcpy(&scale, row.scale(group), sizeof scale);
    const int zero = shape.has_zeros() ? *row.zero(group) : 8;
    return float((code >> place.shift & 15) - zero) * as_float(uint32_t(scale) << 16);
}

void gather_row(const DecodedGatherArgs& args, int64_t i) {
    const DecodedShape& shape = args.shape;
    const bool known = args.ids[i] >= 0 && args.ids[i] < shape.n;
    const StoredRow row(shape, args.weight, known ? args.ids[i] : 0);
    alignas(64) float values[kLanes] = {};
    for (int64_t k = 0; k < shape.k; k += kLanes) {
        for (int64_t j = 0; j < kLanes && k + j < shape.k; ++j) {
            values[j] = known ? value_at(row, k + j) : __builtin_nanf("");
        }
        store(args.out, args.out_dtype, i * args.out_stride + k, load(values),
              tail_mask(shape.k - k));
    }
}

}  // namespace

int64_t encode_rows(const EncodeArgs& args) {
    const int64_t groups = ceil_div(args.rows, kLanes);
    int64_t num_bad = 0;
#pragma omp parallel num_threads(args.num_threads) reduction(+ : num_bad)
    {
        Arena arena;
        const int64_t padded = args.shape.padded_columns();
        const RoundedRow rounded = RoundedRow::in(arena.reserve(RoundedRow::bytes(padded)), padded);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t end = (group + 1) * kLanes < args.rows ? (group + 1) * kLanes : args.rows;
            for (int64_t row = group * kLanes; row < end; ++row) {
                if (!encode_row(args, row, rounded)) ++num_bad;
            }
        }
    }
    return num_bad;
}

void gather_decoded_rows(const DecodedGatherArgs& args) {
#pragma omp parallel for num_threads(args.num_threads) schedule(static) if (args.num_ids > 1)
    for (int64_t i = 0; i < args.num_ids; ++i) gather_row(args, i);
}

}  // namespace hal::cpu
