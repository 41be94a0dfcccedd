#include "simd_avx512.h"

namespace hal::cpu {
namespace {

inline uint16_t to_bf16(float value) {
    const __m256i bits = (__m256i)_mm512_cvtneps_pbh(_mm512_set1_ps(value));
    return uint16_t(_mm256_extract_epi16(bits, 0));
}

inline float to_float(const PackArgs& args, int64_t index) {
    switch (args.src_dtype) {
        case DType::kFloat32:
            return static_cast<const float*>(args.src)[index];
        case DType::kBfloat16:
            return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(
                int(uint32_t(static_cast<const Bf16*>(args.src)[index].bits) << 16))));
        default:
            break;
    }
    const uint16_t half = static_cast<const uint16_t*>(args.src)[index];
    return _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_set1_epi16(int16_t(half))));
}

int64_t destination_row(const PackArgs& args, int64_t row) {
    row += args.first_row;
    if (!args.gated) return row;
    const int64_t half = args.shape.n / 2;
    const int64_t up = row >= half ? 1 : 0;
    row -= up * half;
    return (row / kLanes * 2 + up) * kLanes + row % kLanes;
}

void pack_row(const PackArgs& args, int64_t row) {
    const PackedShape& shape = args.shape;
    const int64_t dst_row = destination_row(args, row);
    const int64_t unit_stride = shape.panel_width(dst_row / kPanelRows) * shape.step();
    const int64_t base = shape.row_offset(dst_row);
    for (int64_t k = 0; k < shape.k; ++k) {
        const int64_t index = base + k / shape.step() * unit_stride + k % shape.step();
        const int64_t source = row * args.src_stride + k;
        if (shape.dtype == DType::kFloat32) {
            static_cast<float*>(args.dst)[index] = to_float(args, source);
        } else if (args.src_dtype == DType::kBfloat16) {
            // Bits are copied as they are: no conversion may flush a denormal weight.
            static_cast<Bf16*>(args.dst)[index] = static_cast<const Bf16*>(args.src)[source];
        } else {
            static_cast<Bf16*>(args.dst)[index].bits = to_bf16(to_float(args, source));
        }
    }
}

// 16 rows that stay together in the destination, same dtype: transposed 16 units at a time.
void pack_row_group(const PackArgs& args, int64_t row) {
    const PackedShape& shape = args.shape;
    const int64_t dst_row = destination_row(args, row);
    const int64_t unit_bytes = shape.panel_width(dst_row / kPanelRows) * 4;
    const int64_t element_bytes = 4 / shape.step();
    char* dst = static_cast<char*>(args.dst) + shape.row_offset(dst_row) * element_bytes;
    const char* src = static_cast<const char*>(args.src) + row * args.src_stride * element_bytes;
    const int64_t units = shape.k / shape.step();
    for (int64_t u = 0; u < units; u += kLanes) {
        const __mmask16 mask = tail_mask(units - u);
        __m512i r[16];
        for (int i = 0; i < 16; ++i) {
            const char* p = src + i * args.src_stride * element_bytes + u * 4;
            r[i] = _mm512_maskz_loadu_epi32(mask, p);
        }
        transpose16(r);
        for (int64_t i = 0; i < kLanes && u + i < units; ++i) {
            _mm512_storeu_si512(dst + (u + i) * unit_bytes, r[i]);
        }
    }
}

inline float not_a_number(const float*) { return __builtin_nanf(""); }
inline Bf16 not_a_number(const Bf16*) { return {0x7fc0}; }

template <class T>
void gather_row(const PackedGatherArgs& args, int64_t i) {
    constexpr int64_t step = 4 / sizeof(T);
    const PackedShape& shape = args.shape;
    T* out = static_cast<T*>(args.out) + i * args.out_stride;
    const int64_t row = args.ids[i];
    if (row < 0 || row >= shape.n) {
        for (int64_t k = 0; k < shape.k; ++k) out[k] = not_a_number(out);
        return;
    }
    const int64_t stride = shape.panel_width(row / kPanelRows) * step;
    const T* from = static_cast<const T*>(args.weight) + shape.row_offset(row);
    for (int64_t k = 0; k < shape.k; ++k) out[k] = from[k / step * stride + k % step];
}

}  // namespace

void pack_rows(const PackArgs& args) {
    const int64_t groups = ceil_div(args.rows, kLanes);
    const bool transposable = args.src_dtype == args.shape.dtype && args.first_row % kLanes == 0 &&
                              args.shape.k % args.shape.step() == 0;
#pragma omp parallel for num_threads(args.num_threads) schedule(static)
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t begin = group * kLanes;
        if (transposable && begin + kLanes <= args.rows) {
            pack_row_group(args, begin);
            continue;
        }
        for (int64_t row = begin; row < begin + kLanes && row < args.rows; ++row) {
            pack_row(args, row);
        }
    }
}

void gather_packed_rows(const PackedGatherArgs& args) {
    const bool is_float = args.shape.dtype == DType::kFloat32;
#pragma omp parallel for num_threads(args.num_threads) schedule(static) if (args.num_ids > 1)
    for (int64_t i = 0; i < args.num_ids; ++i) {
        if (is_float) {
            gather_row<float>(args, i);
        } else {
            gather_row<Bf16>(args, i);
        }
    }
}

}  // namespace hal::cpu
