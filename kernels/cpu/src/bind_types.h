// How bind.cpp reads the raw addresses and the codes that Python passes.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace hal::cpu {
namespace {

using Address = uintptr_t;

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

inline DType dtype_of(int code) { return static_cast<DType>(code); }

inline PackedShape packed_shape(int64_t n, int64_t k, int dtype) { return {n, k, dtype_of(dtype)}; }

}  // namespace
}  // namespace hal::cpu
