// How bind.cpp shows a Communicator.
#pragma once

#include <nanobind/nanobind.h>

#include "bind_launch.h"
#include "bind_types.h"
#include "collective.h"

namespace hal::cpu {
namespace {

Communicator* new_communicator(Address region, int rank, int size, double timeout_s) {
    return new Communicator(at(region), rank, size, timeout_s);
}

void call_all_reduce(Communicator& group, Address x, int64_t count, int dtype) {
    launch(&all_reduce,
           {.group = &group, .x = at(x), .count = count, .dtype = dtype_of(dtype), .num_threads = 1});
}

void call_all_gather(Communicator& group, Address own, int64_t rows, int64_t columns,
                     int64_t element, Address out) {
    launch(&all_gather, {.group = &group,
                         .own = at(own),
                         .rows = rows,
                         .columns = columns,
                         .element = element,
                         .out = at(out),
                         .num_threads = 1});
}

void call_broadcast(Communicator& group, Address x, int64_t bytes, int root) {
    nanobind::gil_scoped_release release;
    group.broadcast(at(x), bytes, root);
}

// None while the group is whole, -1 where a rank has left it, else the rank that did not come.
nanobind::object failure_of(const Communicator& group) {
    const int failure = group.failure();
    return failure == Communicator::kNoFailure ? nanobind::none() : nanobind::cast(failure);
}

void define_communicator(nanobind::module_& m) {
    nanobind::class_<Communicator>(m, "Communicator")
        .def(nanobind::new_(&new_communicator))
        .def_static("region_bytes", &Communicator::region_bytes)
        .def("all_reduce", &call_all_reduce)
        .def("all_gather", &call_all_gather)
        .def("broadcast", &call_broadcast)
        .def("limit_waits", &Communicator::limit_waits)
        .def("abort", &Communicator::abort)
        .def("failure", &failure_of);
}

}  // namespace
}  // namespace hal::cpu
