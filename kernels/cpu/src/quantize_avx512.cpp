// Weights to codes and back: see QuantizedShape for the layout.
#include "arena.h"
#include "rounding_avx512.h"

namespace hal::cpu {
namespace {

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
