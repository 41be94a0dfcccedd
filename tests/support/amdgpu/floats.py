"""Floating point of the vector units on whole arrays: what numpy does not give as it is.

Rounding is to nearest even and subnormal numbers are kept, as the kernels' descriptors ask for
(launch.py refuses others).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_LEAST_NORMAL = 2.0**-126


def _libm_fma() -> Any:
    fma = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6").fma
    fma.restype = ctypes.c_double
    fma.argtypes = [ctypes.c_double] * 3
    return np.frompyfunc(fma, 3, 1)


_fma = _libm_fma()


def fma64(a: F64, b: F64, c: F64) -> F64:
    """Rounded once, by the C library."""
    return np.asarray(_fma(a, b, c), dtype=np.float64)


def fma32(a: F32, b: F32, c: F32) -> F32:
    """a * b + c rounded once.

    The product is exact in float64. Where the sum, rounded there, could be rounded twice (it lies
    half way between two float32, or is subnormal as one), it is first rounded to odd.
    """
    product = a.astype(np.float64) * b
    total = product + c
    found = total.astype(np.float32)
    is_half_way = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    # Below the least normal number and not zero: zero less one is the largest integer.
    is_tiny = (found.view(np.uint32) & 0x7FFFFFFF) - 1 < 0x7FFFFF
    if np.count_nonzero(is_half_way) or np.count_nonzero(is_tiny):
        return _rounded_to_odd(product, c.astype(np.float64), total).astype(np.float32)
    return found


def scaled_fma(a: Any, b: Any, c: Any, power: NDArray[np.int64]) -> Any:
    """(a * b + c) * 2^power, rounded once."""
    if a.itemsize == 4:
        product = a.astype(np.float64) * b
        total = _rounded_to_odd(product, c.astype(np.float64), product + c)
        return np.ldexp(total, power).astype(np.float32)
    found = np.ldexp(fma64(a, b, c), power)
    # The quotient of Python's integers is rounded once, to subnormal numbers too.
    for lane in np.flatnonzero(np.isfinite(found) & is_subnormal(found)):
        exact = Fraction(float(a[lane])) * Fraction(float(b[lane])) + Fraction(float(c[lane]))
        found[lane] = float(exact * Fraction(2) ** int(power[lane]))
    return found


def _rounded_to_odd(a: F64, b: F64, total: F64) -> F64:
    """total = a + b, with its last bit set where it is not exact."""
    of_b = total - a
    error = (a - (total - of_b)) + (b - of_b)
    bits = total.view(np.int64)
    is_moved = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(is_moved, bits + step, bits).view(np.float64)


def flushed(x: F32) -> F32:
    """Subnormal numbers become zeros of their sign."""
    return np.where(np.abs(x) < np.float32(_LEAST_NORMAL), np.copysign(np.float32(0), x), x)


def quieted(x: Any) -> Any:
    """A signalling NaN with its quiet bit set."""
    bit = {2: 1 << 9, 4: 1 << 22, 8: 1 << 51}[x.itemsize]
    bits = x.view(f"u{x.itemsize}")
    return np.where(np.isnan(x), bits | bits.dtype.type(bit), bits).view(x.dtype)


def minimum(a: Any, b: Any) -> Any:
    """IEEE 754-2008 minNum; -0 is less than +0."""
    return _chosen(np.fmin(a, b), a, b, np.bitwise_or)


def maximum(a: Any, b: Any) -> Any:
    """IEEE 754-2008 maxNum; +0 is more than -0."""
    return _chosen(np.fmax(a, b), a, b, np.bitwise_and)


def _chosen(found: Any, a: Any, b: Any, of_zeros: Any) -> Any:
    kind = f"u{a.itemsize}"
    bits = of_zeros(np.ascontiguousarray(a).view(kind), np.ascontiguousarray(b).view(kind))
    return np.where(a == b, bits.view(a.dtype), found)


def approximate(function: Any) -> Any:
    """`function` in float64, of a float32 instruction that the guide gives 1 ulp and that flushes
    subnormal numbers: ours is rounded correctly, and so may differ from a card's in the last bit.
    """

    def rounded(x: F32) -> F32:
        return flushed(function(flushed(x).astype(np.float64)).astype(np.float32))

    return rounded


def exponent(x: Any) -> NDArray[np.int64]:
    """The biased field, as the guide's exponent()."""
    if x.itemsize == 4:
        return np.asarray(x.view(np.uint32) >> 23 & 0xFF, dtype=np.int64)
    return np.asarray(x.view(np.uint64) >> 52 & 0x7FF, dtype=np.int64)


def is_subnormal(x: Any) -> NDArray[np.bool_]:
    return np.asarray((np.abs(x) < np.finfo(x.dtype).tiny) & (x != 0))


def to_integer(x: Any, dtype: Any) -> Any:
    """Toward zero, saturated; NaN gives 0."""
    limits = np.iinfo(dtype)
    # Of 32 bits and fewer: float64 holds every limit.
    wide = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=1e300, neginf=-1e300))
    return np.clip(wide, limits.min, limits.max).astype(np.int64).astype(dtype)


def class_of(x: Any, wanted: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """V_CMP_CLASS: whether x is of one of the classes that bits of `wanted` name."""
    is_negative, is_zero = np.signbit(x), x == 0
    is_quiet = np.ascontiguousarray(quieted(x)).view(f"u{x.itemsize}") == x.view(f"u{x.itemsize}")
    tiny, infinite, nan = is_subnormal(x), np.isinf(x), np.isnan(x)
    normal = ~(tiny | infinite | nan | is_zero)
    # Negative: infinite, normal, subnormal, zero; then positive in the opposite order.
    kinds = (infinite, normal, tiny, is_zero)
    found = np.where(nan, np.where(is_quiet, 2, 1), 0)
    for place, kind in enumerate(kinds):
        found |= np.where(kind & is_negative, 1 << (2 + place), 0)
        found |= np.where(kind & ~is_negative, 1 << (9 - place), 0)
    return np.asarray((found & wanted) != 0)
