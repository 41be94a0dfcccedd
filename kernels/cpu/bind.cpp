// Module hal.kernels.cpu._C: the functions of src/kernels.h on raw addresses. A call costs about
// 0.1 us this way; DLPack tensors cost 7. Shapes and dtypes are the Python wrappers' to check.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "src/bind_collective.h"
#include "src/bind_copies.h"
#include "src/bind_experts.h"
#include "src/bind_launch.h"
#include "src/bind_types.h"
#include "src/counters.h"
#include "src/features.h"
#include "src/kernels.h"
#include "src/levels.h"
#include "src/pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nb = nanobind;

namespace hal::cpu {
namespace {

// Streaming a weight through 4 KiB pages loses a quarter of the bandwidth to page-bound
// prefetchers. Best effort: false where the system has no such advice or refuses it.
bool advise_huge_pages(Address address, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const Address begin = (address + 4095) / 4096 * 4096;
    const Address end = (address + Address(bytes)) / 4096 * 4096;
    return end > begin && madvise(at(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
    (void)address;
    (void)bytes;
    return false;
#endif
}

void call_touch_pages(Address memory, int64_t bytes, int num_threads) {
    nb::gil_scoped_release release;
    touch_pages(at<char>(memory), bytes, num_threads);
}

void call_pack_rows(Address src, int src_dtype, int64_t src_stride, int64_t rows, Address dst,
                    int64_t n, int64_t k, int dtype, int64_t first_row, bool gated,
                    int num_threads) {
    nb::gil_scoped_release release;
    pack_rows({.src = at(src),
               .src_dtype = dtype_of(src_dtype),
               .src_stride = src_stride,
               .rows = rows,
               .dst = at(dst),
               .shape = packed_shape(n, k, dtype),
               .first_row = first_row,
               .gated = gated,
               .num_threads = num_threads});
}

void call_gather_packed_rows(Address weight, int64_t n, int64_t k, int dtype, Address ids,
                             int64_t num_ids, Address out, int64_t out_stride, int num_threads) {
    launch(&gather_packed_rows, {.weight = at(weight),
                                 .shape = packed_shape(n, k, dtype),
                                 .ids = at<int32_t>(ids),
                                 .num_ids = num_ids,
                                 .out = at(out),
                                 .out_stride = out_stride,
                                 .num_threads = num_threads});
}

// The functions that every level has take the level's own first.

LinearArgs linear_args(Address x, int64_t x_stride, int64_t m, Address weight, int64_t n, int64_t k,
                       int dtype, Address bias, Address out, int out_dtype, int64_t out_stride,
                       int activation, bool gated, int num_threads) {
    return {.x = at(x),
            .x_stride = x_stride,
            .m = m,
            .weight = at(weight),
            .shape = packed_shape(n, k, dtype),
            .output = {.n = n,
                       .bias = at(bias),
                       .bias_dtype = dtype_of(dtype),
                       .out = at(out),
                       .dtype = dtype_of(out_dtype),
                       .stride = out_stride,
                       .activation = static_cast<Activation>(activation),
                       .gated = gated},
            .num_threads = num_threads};
}

QuantizedLinearArgs quantized_linear_args(Address x, int x_dtype, int64_t x_stride, int64_t m,
                                          Address weight, int64_t n, int64_t k, int64_t group,
                                          bool has_zeros, int codes, Address scratch, Address bias,
                                          Address out, int out_dtype, int64_t out_stride,
                                          int activation, bool gated, int num_threads) {
    return {.x = at(x),
            .x_dtype = dtype_of(x_dtype),
            .x_stride = x_stride,
            .m = m,
            .weight = at(weight),
            .shape = {n, k, group, has_zeros, static_cast<Codes>(codes)},
            .scratch = at(scratch),
            .output = {.n = n,
                       .bias = at(bias),
                       .bias_dtype = dtype_of(x_dtype),
                       .out = at(out),
                       .dtype = dtype_of(out_dtype),
                       .stride = out_stride,
                       .activation = static_cast<Activation>(activation),
                       .gated = gated},
            .num_threads = num_threads};
}

template <auto collect, class Collected, class... Args>
void call(void (*kernel)(const Collected&), Args... args) {
    launch(kernel, collect(args...));
}
template <auto collect, class Collected, class... Args>
auto* calling_with(Collected (*)(Args...)) {
    return &call<collect, Collected, Args...>;
}
// What calls a kernel with the arguments that `collect` makes one of.
template <auto collect>
auto* calling() {
    return calling_with<collect>(collect);
}

int64_t call_quantize_rows(decltype(LevelKernels::quantize_rows) quantize_rows,
                           Address src, int src_dtype, int64_t src_stride, int64_t rows,
                           Address dst, int64_t n, int64_t k, int64_t group, bool has_zeros,
                           int codes, int64_t first_row, bool gated, int num_threads) {
    nb::gil_scoped_release release;
    return quantize_rows({.src = at(src),
                          .src_dtype = dtype_of(src_dtype),
                          .src_stride = src_stride,
                          .rows = rows,
                          .dst = at(dst),
                          .shape = {n, k, group, has_zeros, static_cast<Codes>(codes)},
                          .first_row = first_row,
                          .gated = gated,
                          .num_threads = num_threads});
}

void call_gather_quantized_rows(decltype(LevelKernels::gather_quantized_rows) gather_quantized_rows,
                                Address weight, int64_t n, int64_t k, int64_t group,
                                bool has_zeros, int codes, Address ids, int64_t num_ids,
                                Address out, int out_dtype, int64_t out_stride, int num_threads) {
    launch(gather_quantized_rows, {.weight = at(weight),
                                   .shape = {n, k, group, has_zeros, static_cast<Codes>(codes)},
                                   .ids = at<int32_t>(ids),
                                   .num_ids = num_ids,
                                   .out = at(out),
                                   .out_dtype = dtype_of(out_dtype),
                                   .out_stride = out_stride,
                                   .num_threads = num_threads});
}

void call_norm(void (*norm)(const NormArgs&), Address x, int64_t x_stride, Address residual,
               int64_t residual_stride,
               Address weight, Address bias, Address out, int64_t out_stride, int64_t rows,
               int64_t hidden, float eps, bool layer_norm, int dtype, int num_threads) {
    launch(norm, {.x = at(x),
                  .x_stride = x_stride,
                  .residual = at(residual),
                  .residual_stride = residual_stride,
                  .weight = at(weight),
                  .bias = at(bias),
                  .out = at(out),
                  .out_stride = out_stride,
                  .rows = rows,
                  .hidden = hidden,
                  .eps = eps,
                  .layer_norm = layer_norm,
                  .dtype = dtype_of(dtype),
                  .num_threads = num_threads});
}

inline DType x_dtype(const LinearArgs& args) { return args.shape.dtype; }
inline DType x_dtype(const QuantizedLinearArgs& args) { return args.x_dtype; }

// A product whose x is first written, as the norm of `values` (+ residual).
template <auto collect, class Collected, class... Args>
void call_after_norm(void (*kernel)(const Collected&), Address values, int64_t values_stride,
                     Address residual, int64_t residual_stride, Address weight, Address bias,
                     float eps, Args... args) {
    const Collected product = collect(args...);
    const NormArgs norm{.x = at(values),
                        .x_stride = values_stride,
                        .residual = at(residual),
                        .residual_stride = residual_stride,
                        .weight = at(weight),
                        .bias = at(bias),
                        .out = const_cast<void*>(product.x),
                        .out_stride = product.x_stride,
                        .rows = product.m,
                        .hidden = product.shape.k,
                        .eps = eps,
                        .layer_norm = bias != 0,
                        .dtype = x_dtype(product),
                        .num_threads = product.num_threads};
    launch(&product_after_norm<Collected>, {kernel, product, norm, product.num_threads});
}
template <auto collect, class Collected, class... Args>
auto* calling_after_norm_with(Collected (*)(Args...)) {
    return &call_after_norm<collect, Collected, Args...>;
}
template <auto collect>
auto* calling_after_norm() {
    return calling_after_norm_with<collect>(collect);
}

void call_activate(void (*activate)(const ActivationArgs&), Address x, int64_t x_stride,
                   Address out, int64_t out_stride, int64_t rows,
                   int64_t size, int activation, bool gated, int dtype, int num_threads) {
    launch(activate, {.x = at(x),
                      .x_stride = x_stride,
                      .out = at(out),
                      .out_stride = out_stride,
                      .rows = rows,
                      .size = size,
                      .activation = static_cast<Activation>(activation),
                      .gated = gated,
                      .dtype = dtype_of(dtype),
                      .num_threads = num_threads});
}

void call_qk_norm_rope(void (*qk_norm_rope)(const RopeArgs&), Address qkv, int64_t qkv_stride,
                       int64_t num_tokens, int64_t num_heads,
                       int64_t num_kv_heads, int64_t head_dim, Address positions, Address cos_sin,
                       int64_t rotary_dim, Address q_norm, Address k_norm, float eps, int dtype,
                       int num_threads) {
    launch(qk_norm_rope, {.qkv = at(qkv),
                          .qkv_stride = qkv_stride,
                          .num_tokens = num_tokens,
                          .num_heads = num_heads,
                          .num_kv_heads = num_kv_heads,
                          .head_dim = head_dim,
                          .positions = at<int32_t>(positions),
                          .cos_sin = at<float>(cos_sin),
                          .rotary_dim = rotary_dim,
                          .q_norm = at(q_norm),
                          .k_norm = at(k_norm),
                          .eps = eps,
                          .dtype = dtype_of(dtype),
                          .num_threads = num_threads});
}

void call_write_kv(void (*write_kv)(const WriteKvArgs&), Address qkv, int64_t qkv_stride,
                   int64_t num_tokens, int64_t num_heads,
                   Address kv, int kv_dtype, int64_t num_kv_heads, int64_t block_size,
                   int64_t head_dim, Address slot_mapping, int dtype, int num_threads) {
    launch(write_kv, {.qkv = at(qkv),
                      .qkv_stride = qkv_stride,
                      .num_tokens = num_tokens,
                      .num_heads = num_heads,
                      .kv = at(kv),
                      .kv_shape = {num_kv_heads, block_size, head_dim, dtype_of(kv_dtype)},
                      .slot_mapping = at<int64_t>(slot_mapping),
                      .dtype = dtype_of(dtype),
                      .num_threads = num_threads});
}

AttentionArgs attention_args(Address q, int64_t q_stride, Address kv, int kv_dtype,
                             int64_t num_kv_heads, int64_t block_size, int64_t head_dim,
                             Address out, int64_t out_stride, Address cu_seqlens_q,
                             Address seq_lens, Address block_table, int64_t block_table_stride,
                             int64_t num_seqs, int64_t num_heads, float scale, float softcap,
                             int64_t window, int dtype, int num_threads) {
    return {.q = at(q),
            .q_stride = q_stride,
            .kv = at(kv),
            .kv_shape = {num_kv_heads, block_size, head_dim, dtype_of(kv_dtype)},
            .out = at(out),
            .out_stride = out_stride,
            .cu_seqlens_q = at<int32_t>(cu_seqlens_q),
            .seq_lens = at<int32_t>(seq_lens),
            .block_table = at<int32_t>(block_table),
            .block_table_stride = block_table_stride,
            .num_seqs = num_seqs,
            .num_heads = num_heads,
            .scale = scale,
            .softcap = softcap,
            .window = window,
            .dtype = dtype_of(dtype),
            .num_threads = num_threads};
}

#if defined(HAL_HAS_AVX512)

// Rotates the rows whose first heads are q, writes their K and V, attends. The arguments behind
// num_tokens are those of attention_args after q.
template <class... Args>
void call_rope_write_attend(Address qkv, Address positions, Address cos_sin, int64_t rotary_dim,
                            Address q_norm, Address k_norm, float eps, Address slot_mapping,
                            int64_t num_tokens, Args... args) {
    const AttentionArgs attend = attention_args(qkv, args...);
    const NewTokens tokens{.rope = {.qkv = at(qkv),
                                    .qkv_stride = attend.q_stride,
                                    .num_tokens = num_tokens,
                                    .num_heads = attend.num_heads,
                                    .num_kv_heads = attend.kv_shape.num_kv_heads,
                                    .head_dim = attend.kv_shape.head_dim,
                                    .positions = at<int32_t>(positions),
                                    .cos_sin = at<float>(cos_sin),
                                    .rotary_dim = rotary_dim,
                                    .q_norm = at(q_norm),
                                    .k_norm = at(k_norm),
                                    .eps = eps,
                                    .dtype = attend.dtype,
                                    .num_threads = attend.num_threads},
                           .write = {.qkv = at(qkv),
                                     .qkv_stride = attend.q_stride,
                                     .num_tokens = num_tokens,
                                     .num_heads = attend.num_heads,
                                     .kv = const_cast<void*>(attend.kv),
                                     .kv_shape = attend.kv_shape,
                                     .slot_mapping = at<int64_t>(slot_mapping),
                                     .dtype = attend.dtype,
                                     .num_threads = attend.num_threads}};
    launch(&rope_write_attend, {tokens, attend, attend.num_threads});
}

template <class Result, class First, class... Args>
auto* call_rope_write_attend_with(Result (*)(First, Args...)) {
    return &call_rope_write_attend<Args...>;
}

#endif

void call_sample(SamplingPasses passes, Address logits, int64_t stride, int64_t rows, int64_t vocab,
                 Address temperature, Address top_k, Address top_p, Address min_p, Address seeds,
                 Address token_index, bool has_filters, Address tokens, int num_threads) {
    const SampleArgs args{.logits = at<float>(logits),
                          .stride = stride,
                          .rows = rows,
                          .vocab = vocab,
                          .temperature = at<float>(temperature),
                          .top_k = at<int32_t>(top_k),
                          .top_p = at<float>(top_p),
                          .min_p = at<float>(min_p),
                          .seeds = at<int64_t>(seeds),
                          .token_index = at<int32_t>(token_index),
                          .has_filters = has_filters,
                          .tokens = at<int32_t>(tokens),
                          .num_threads = num_threads};
    launch(&sample_with, {passes, args, num_threads});
}

void call_mask_logits(Address logits, int64_t stride, int64_t vocab, Address rows, int64_t num_rows,
                      Address mask, int64_t mask_stride, int num_threads) {
    launch(&mask_logits, {.logits = at<float>(logits),
                          .stride = stride,
                          .vocab = vocab,
                          .rows = at<int32_t>(rows),
                          .num_rows = num_rows,
                          .mask = at<uint32_t>(mask),
                          .mask_stride = mask_stride,
                          .num_threads = num_threads});
}

// `call` with its first argument given.
template <class Result, class Kernel, class... Args>
void define(nb::module_& m, const char* name, Result (*call)(Kernel, Args...), Kernel kernel) {
    m.def(name, [call, kernel](Args... args) { return call(kernel, args...); });
}

#if defined(HAL_HAS_AVX512)
void any_quantized_linear(const QuantizedLinearArgs& args) {
    const auto product = args.shape.codes == Codes::kDots ? quantized_linear : decoded_linear;
    product(args);
}
#endif

void define_products(nb::module_& m, const LevelKernels& kernels,
                     decltype(LevelKernels::linear) logits) {
    define(m, "linear", calling<linear_args>(), kernels.linear);
    define(m, "quantize_rows", &call_quantize_rows, kernels.quantize_rows);
    define(m, "gather_quantized_rows", &call_gather_quantized_rows,
           kernels.gather_quantized_rows);
    define(m, "quantized_linear", calling<quantized_linear_args>(), kernels.quantized_linear);
    const Products products{logits, kernels.linear, kernels.quantized_linear};
    define(m, "grouped_linear", &call_grouped_linear, products);
    define(m, "moe", &call_moe, products);
}

void define_rows(nb::module_& m, const LevelKernels& kernels) {
    define(m, "norm", &call_norm, kernels.norm);
    define(m, "activate", &call_activate, kernels.activate);
    define(m, "qk_norm_rope", &call_qk_norm_rope, kernels.qk_norm_rope);
    define(m, "sample", &call_sample, kernels.sampling);
}

}  // namespace
}  // namespace hal::cpu

NB_MODULE(_C, m) {
    using namespace hal::cpu;
    // A recording that is still held when the interpreter ends is no leak, and stderr is the user's.
    nb::set_leak_warnings(false);
    m.attr("source_hash") = HAL_SOURCE_HASH;
    m.attr("compiler") = HAL_COMPILER;
    m.def("features", &features, "Instruction sets this CPU and its operating system support.");
    m.def("has_avx512_bf16_kernels", &has_avx512_bf16_kernels);
    m.def("has_amx_kernels", &has_amx_kernels);
    m.def("advise_huge_pages", &advise_huge_pages);
    m.def("bind_threads", &bind_threads, nb::call_guard<nb::gil_scoped_release>());
    m.def("touch_pages", &call_touch_pages);
    m.def("num_barriers", &num_barriers);
    m.def("num_scratch_allocations", &num_scratch_allocations);
    m.def("mask_logits", &call_mask_logits);
    define_copies(m);
    define_communicator(m);
    nb::class_<Recording>(m, "Recording")
        .def(nb::init<>())
        .def("begin", &begin_recording)
        .def_static("end", &end_recording)
        .def("replay", &replay_recording)
        .def_prop_ro("num_calls", &Recording::num_calls)
        .def_prop_ro("num_bytes", &Recording::num_bytes);
    m.def("pack_rows", &call_pack_rows);
    m.def("gather_packed_rows", &call_gather_packed_rows);
    for (const Level& level : levels()) {
        nb::module_ part = m.def_submodule(level.name.c_str());
        part.attr("needs") = nb::cast(level.needs);
        const LevelKernels& kernels = *level.kernels;
        define_products(part, kernels, kernels.linear);
        define_rows(part, kernels);
        define(part, "attention", calling<attention_args>(), kernels.attention);
        define(part, "write_kv", &call_write_kv, kernels.write_kv);
    }
#if defined(HAL_HAS_AVX512)
    define_products(m, {.linear = &linear,
                        .quantize_rows = &quantize_rows,
                        .gather_quantized_rows = &gather_quantized_rows,
                        .quantized_linear = &any_quantized_linear}, &linear);
    define(m, "linear_after_norm", calling_after_norm<linear_args>(), &linear);
    define(m, "quantized_linear_after_norm", calling_after_norm<quantized_linear_args>(),
           &any_quantized_linear);
    define_rows(m, {.norm = &norm,
                    .activate = &activate,
                    .qk_norm_rope = &qk_norm_rope,
                    .sampling = kAvx512Passes});
    define(m, "write_kv", &call_write_kv, &write_kv);
    define(m, "attention", calling<attention_args>(), &attention);
    m.def("rope_write_attend", call_rope_write_attend_with(&attention_args));
#endif
#if defined(HAL_HAS_AMX)
    nb::module_ tiles = m.def_submodule("amx");
    define_products(tiles, {.linear = &linear_amx,
                            .quantize_rows = &quantize_rows,
                            .gather_quantized_rows = &gather_quantized_rows,
                            .quantized_linear = &quantized_linear_amx}, &linear);
#endif
}
