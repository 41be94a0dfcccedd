// How bind.cpp shows the copies by index.
#pragma once

#include <nanobind/nanobind.h>

#include "bind_launch.h"
#include "bind_types.h"
#include "kernels.h"

namespace hal::cpu {
namespace {

void call_gather_rows(Address table, int64_t num_rows, int64_t table_stride_bytes, Address ids,
                      int64_t num_ids, Address out, int64_t out_stride_bytes, int64_t row_bytes,
                      int num_threads) {
    launch(&gather_rows, {.table = at(table),
                          .num_rows = num_rows,
                          .table_stride_bytes = table_stride_bytes,
                          .ids = at<int32_t>(ids),
                          .num_ids = num_ids,
                          .out = at(out),
                          .out_stride_bytes = out_stride_bytes,
                          .row_bytes = row_bytes,
                          .num_threads = num_threads});
}

void call_take_tokens(Address token_ids, Address slots, Address last_tokens, int64_t num_tokens,
                      Address out, int num_threads) {
    launch(&take_tokens, {.token_ids = at<int32_t>(token_ids),
                          .slots = at<int32_t>(slots),
                          .last_tokens = at<int32_t>(last_tokens),
                          .num_tokens = num_tokens,
                          .out = at<int32_t>(out),
                          .num_threads = num_threads});
}

void call_keep_tokens(Address tokens, Address slots, int64_t num_tokens, Address last_tokens,
                      int num_threads) {
    launch(&keep_tokens, {.tokens = at<int32_t>(tokens),
                          .slots = at<int32_t>(slots),
                          .num_tokens = num_tokens,
                          .last_tokens = at<int32_t>(last_tokens),
                          .num_threads = num_threads});
}

void call_own_tokens(Address ids, int64_t num_ids, int32_t first, int32_t count, Address out,
                     int num_threads) {
    launch(&own_tokens, {.ids = at<int32_t>(ids),
                         .num_ids = num_ids,
                         .first = first,
                         .count = count,
                         .out = at<int32_t>(out),
                         .num_threads = num_threads});
}

void call_zero_other_rows(Address ids, int64_t num_ids, int32_t first, int32_t count, Address out,
                          int64_t out_stride_bytes, int64_t row_bytes, int num_threads) {
    launch(&zero_other_rows, {.ids = at<int32_t>(ids),
                              .num_ids = num_ids,
                              .first = first,
                              .count = count,
                              .out = at(out),
                              .out_stride_bytes = out_stride_bytes,
                              .row_bytes = row_bytes,
                              .num_threads = num_threads});
}

void define_copies(nanobind::module_& m) {
    m.def("gather_rows", &call_gather_rows);
    m.def("take_tokens", &call_take_tokens);
    m.def("keep_tokens", &call_keep_tokens);
    m.def("own_tokens", &call_own_tokens);
    m.def("zero_other_rows", &call_zero_other_rows);
}

}  // namespace
}  // namespace hal::cpu
