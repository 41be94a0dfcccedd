"""Conversions between float32 and the 16- and 8-bit floats of AMD's matrix instructions.

Sources: AMD, "CDNA3 Instruction Set Architecture" and "CDNA4 Instruction Set Architecture", the
chapters on data formats; OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2). gfx942 has the
FNUZ forms of the 8-bit floats (no infinity, no negative zero, 0x80 the only NaN), gfx950 the OCP
forms. Rounding is to nearest even everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]
U8 = NDArray[np.uint8]


def f32_of_bf16(bits: U16) -> F32:
    """The upper half of a float32's bits: exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16_of_f32(values: F32) -> U16:
    """NaN stays NaN and becomes quiet; a value that rounds past the largest is infinite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def f32_of_f16(bits: U16) -> F32:
    """Exact, subnormal numbers included."""
    return bits.view(np.float16).astype(np.float32)


def f16_of_f32(values: F32) -> U16:
    """A value that rounds past 65504 is infinite; subnormal results are kept."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)


@dataclass(frozen=True)
class Float8:
    """An 8-bit float. is_fnuz: no infinity and no negative zero. has_infinity: as in IEEE 754.

    Numbers of exponent field 0 are subnormal; `bias` is subtracted from the field.
    """

    name: str
    mantissa_bits: int
    bias: int
    is_fnuz: bool = False
    has_infinity: bool = False

    @property
    def max_code(self) -> int:
        """Code of the largest finite number."""
        if self.is_fnuz:
            return 0x7F
        return 0x7B if self.has_infinity else 0x7E

    @property
    def nan_code(self) -> int:
        return 0x80 if self.is_fnuz else 0x7F

    @cached_property
    def table(self) -> F32:
        """The number that each code stands for."""
        codes = np.arange(256)
        field = (codes & 0x7F) >> self.mantissa_bits
        fraction = (codes & ((1 << self.mantissa_bits) - 1)) / 2.0**self.mantissa_bits
        exponent = np.maximum(field, 1) - self.bias
        found: F32 = np.ldexp(fraction + (field > 0), exponent).astype(np.float32)
        if self.has_infinity:
            found[(codes & 0x7F) == 0x7C] = np.inf
        found[codes >= 0x80] *= -1
        is_nan = codes == 0x80 if self.is_fnuz else (codes & 0x7F) > self.max_code
        if self.has_infinity:
            is_nan &= (codes & 0x7F) != 0x7C
        found[is_nan] = np.nan
        return found

    def widen(self, codes: U8) -> F32:
        return np.asarray(self.table[codes], dtype=np.float32)

    def round(self, values: F32, *, saturates: bool) -> U8:
        """saturates: what is too large, infinity included, becomes the largest finite number, as
        with MODE.FP16_OVFL; else infinity where there is one, and NaN where there is none."""
        magnitude = np.abs(values).astype(np.float64)
        least = 1 - self.bias
        is_large = ~np.isfinite(magnitude)
        magnitude[is_large] = 1.0  # decided below
        exponent = np.where(magnitude == 0, least, np.maximum(np.frexp(magnitude)[1] - 1, least))
        steps = np.rint(np.ldexp(magnitude, self.mantissa_bits - exponent)).astype(np.int64)
        codes = ((exponent - least) << self.mantissa_bits) + steps
        codes[is_large | (codes > self.max_code)] = self._too_large(saturates)
        is_negative = np.signbit(values) & ~(self.is_fnuz & (codes == 0))
        codes |= np.where(is_negative, 0x80, 0)
        codes[np.isnan(values)] = self.nan_code
        return np.asarray(codes, dtype=np.uint8)

    def _too_large(self, saturates: bool) -> int:
        if saturates:
            return self.max_code
        return 0x7C if self.has_infinity else self.nan_code


E4M3 = Float8("e4m3fn", mantissa_bits=3, bias=7)
E5M2 = Float8("e5m2", mantissa_bits=2, bias=15, has_infinity=True)
E4M3_FNUZ = Float8("e4m3fnuz", mantissa_bits=3, bias=8, is_fnuz=True)
E5M2_FNUZ = Float8("e5m2fnuz", mantissa_bits=2, bias=16, is_fnuz=True)
