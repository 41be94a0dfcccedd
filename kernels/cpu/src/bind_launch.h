// How bind.cpp runs a kernel: now, or whenever a recording is replayed.
#pragma once

#include <nanobind/nanobind.h>

#include <type_traits>

#include "bind_types.h"
#include "recording.h"
#include "sampling_row.h"

namespace hal::cpu {
namespace {

// Runs a kernel without the interpreter's lock, or adds it to the recording of this thread. That
// keeps a copy of the arguments: what they point to must not stand on the caller's stack.
template <class Args>
void launch(void (*kernel)(const Args&), const std::type_identity_t<Args>& args) {
    if (Recording* recording = Recording::current()) {
        recording->add(kernel, args);
        return;
    }
    nanobind::gil_scoped_release release;
    kernel(args);
}

// Kernels whose arguments hold others by address, with both as values.

template <class Product>
struct AfterNormArgs {
    void (*kernel)(const Product&);
    Product product;
    NormArgs norm;
    int num_threads;
};
template <class Product>
void product_after_norm(const AfterNormArgs<Product>& args) {
    NormArgs norm = args.norm;
    Product product = args.product;
    norm.num_threads = product.num_threads = args.num_threads;
    product.norm = &norm;
    args.kernel(product);
}

#if defined(HAL_HAS_AVX512)
struct RopeWriteAttendArgs {
    NewTokens tokens;
    AttentionArgs attend;
    int num_threads;
};
void rope_write_attend(const RopeWriteAttendArgs& args) {
    NewTokens tokens = args.tokens;
    AttentionArgs attend = args.attend;
    tokens.rope.num_threads = tokens.write.num_threads = args.num_threads;
    attend.num_threads = args.num_threads;
    attend.new_tokens = &tokens;
    attention(attend);
}
#endif

struct SampleWithArgs {
    SamplingPasses passes;
    SampleArgs sample;
    int num_threads;
};
void sample_with(const SampleWithArgs& args) {
    SampleArgs now = args.sample;
    now.num_threads = args.num_threads;
    sample(args.passes, now);
}

// What a capture does: kernels launched between begin and end are added to the recording.
void begin_recording(Recording& recording) { Recording::current() = &recording; }
void end_recording() { Recording::current() = nullptr; }

void replay_recording(const Recording& recording, int num_threads) {
    nanobind::gil_scoped_release release;
    recording.replay(num_threads);
}

}  // namespace
}  // namespace hal::cpu
