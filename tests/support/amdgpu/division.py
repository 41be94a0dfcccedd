"""Steps of IEEE division: V_DIV_SCALE, V_DIV_FMAS, V_DIV_FIXUP (CDNA3 ISA, "VOP3A & VOP3B").

Numerator and denominator are scaled where the quotient, the reciprocal or a remainder would leave
the range of normal numbers, by 2^64 in float32 and 2^128 in float64, and V_DIV_FMAS scales back.

The guide's text is not what cards do, for LLVM's division by these steps is IEEE 754's, and by that
text it would not be. Where they part, the code below says so and takes what divides correctly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from amdgpu.floats import exponent, fma32, fma64, is_subnormal, quieted, scaled_fma


@dataclass(frozen=True, slots=True)
class Width:
    """Numbers of the guide's text for one width. spread: of exponents near the largest quotient;
    tiny: exponent of a numerator whose remainders are subnormal; underflow: of the quotient."""

    scale: int
    spread: int
    tiny: int
    bias: int
    underflow: int
    fma: Any


_WIDTHS = {
    4: Width(scale=64, spread=96, tiny=23, bias=127, underflow=-150, fma=fma32),
    8: Width(scale=128, spread=768, tiny=53, bias=1023, underflow=-1075, fma=fma64),
}


def div_scale(x: Any, denominator: Any, numerator: Any) -> tuple[Any, Any]:
    """x is the one of both to scale; (x scaled, lanes that V_DIV_FMAS must scale back)."""
    w = _WIDTHS[x.itemsize]
    of_denominator, of_numerator = exponent(denominator), exponent(numerator)
    spread = of_numerator - of_denominator
    is_usual = (of_denominator > 0) & (of_denominator < 2 * w.bias - 2) & (of_numerator > w.tiny)
    is_usual &= (spread < w.spread) & (spread > 2 - w.bias)
    if is_usual.all():  # to save time: none of the cases below
        return x, np.zeros(len(x), np.bool_)
    is_denominator, is_numerator = x == denominator, x == numerator
    up, down = np.ldexp(x, w.scale), np.ldexp(x, -w.scale)
    reciprocal_tiny = is_subnormal(1 / denominator)
    quotient_tiny = is_subnormal(numerator / denominator)
    cases: list[tuple[Any, Any, bool]] = [
        ((numerator == 0) | (denominator == 0), np.full_like(x, np.nan), False),
        (
            spread >= w.spread,
            np.where(is_denominator, up, x),
            True,
        ),
        (is_subnormal(denominator), up, False),
        # The guide scales up here too, and the denominator would overflow.
        (reciprocal_tiny & quotient_tiny, np.where(is_denominator, down, x), True),
        (reciprocal_tiny, down, False),
        (quotient_tiny, np.where(is_numerator, up, x), True),
        (of_numerator <= w.tiny, up, False),
    ]
    conditions = [condition for condition, _, _ in cases]
    scaled = np.select(conditions, [value for _, value, _ in cases], x)
    return scaled, np.select(conditions, [np.full(len(x), flag) for _, _, flag in cases], False)


def div_fmas(a: Any, b: Any, c: Any, is_scaled: Any) -> Any:
    """fma(a, b, c), scaled back where V_DIV_SCALE said so, and rounded once.

    Up by 2^64 (2^128) if the quotient so far, c, is large, for then the denominator was scaled, and
    down if it is small. That is newer guides' text; CDNA3's says up by 2^32 (2^64), always.
    """
    w = _WIDTHS[a.itemsize]
    power = np.where(exponent(c) > w.bias, w.scale, -w.scale)
    if not is_scaled.any():
        return w.fma(a, b, c)
    return np.where(is_scaled, scaled_fma(a, b, c, power), w.fma(a, b, c))


def div_fixup(quotient: Any, denominator: Any, numerator: Any) -> Any:
    """The quotient, or what IEEE 754 says where an operand is special.

    A quotient past the largest number arrives as NaN, from infinity less infinity in the steps
    before; the guide does not say so.
    """
    w = _WIDTHS[quotient.itemsize]
    of_denominator, of_numerator = exponent(denominator), exponent(numerator)
    spread = of_numerator - of_denominator
    is_usual = (of_denominator > 0) & (of_denominator <= 2 * w.bias) & (of_numerator > 0)
    is_usual &= (of_numerator <= 2 * w.bias) & (spread >= w.underflow) & ~np.isnan(quotient)
    if is_usual.all():  # to save time: none of the cases below
        return np.where(
            np.signbit(denominator) ^ np.signbit(numerator), -abs(quotient), abs(quotient)
        )
    one = np.ones_like(quotient)
    sign = np.where(np.signbit(denominator) ^ np.signbit(numerator), -one, one)
    both_zero = (denominator == 0) & (numerator == 0)
    both_infinite = np.isinf(denominator) & np.isinf(numerator)
    return np.select(
        [
            np.isnan(numerator),
            np.isnan(denominator),
            both_zero | both_infinite,
            (denominator == 0) | np.isinf(numerator),
            np.isinf(denominator) | (numerator == 0),
            spread < w.underflow,
            np.isnan(quotient),
        ],
        [
            quieted(numerator),
            quieted(denominator),
            np.full_like(quotient, -np.nan),
            sign * np.inf,
            sign * 0,
            sign * 0,
            sign * np.inf,
        ],
        np.copysign(quotient, sign),
    ).astype(quotient.dtype)
