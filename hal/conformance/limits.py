"""How far a kernel may be from the float64 oracle, and how that distance is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.dtypes import DType

# Relative L2 of one op's result: a few times what rounding the inputs and the result costs.
LIMITS = {DType.FLOAT32: 1e-5, DType.FLOAT16: 1e-3, DType.BFLOAT16: 1e-2}

Float64 = NDArray[np.float64]


def relative_l2(actual: Float64, expected: Float64) -> float:
    """|actual - expected| / |expected| of the worst row (last dimension).

    Per row, so that one wrong row cannot hide among many right ones. Infinities must be equal;
    NaN (poison that was read or never overwritten) is infinitely far unless expected.
    """
    if actual.shape != expected.shape:
        return math.inf
    is_special = ~np.isfinite(expected)
    if not np.array_equal(actual[is_special], expected[is_special], equal_nan=True):
        return math.inf
    size = np.where(is_special, 0.0, expected)
    difference = np.where(is_special, 0.0, actual) - size
    if not np.isfinite(difference).all():
        return math.inf
    error = np.sqrt(np.sum(difference**2, axis=-1))
    norm = np.sqrt(np.sum(size**2, axis=-1))
    ratio = error / np.where(norm > 0, norm, 1.0)
    return float(ratio.max()) if ratio.size else 0.0


# Nats that the device's favourite may lie below the oracle's own, by the oracle's measure: what a
# reader would notice begins far above. A tie costs nothing, whichever way it falls.
REGRET_LIMITS = {DType.FLOAT32: 1e-4, DType.FLOAT16: 0.02, DType.BFLOAT16: 0.2}


def argmax_regret(actual: Float64, expected: Float64) -> Float64:
    """Of each row: expected log probability of its own argmax less that of `actual`'s argmax.

    A row of `actual` that is not finite regrets infinitely.
    """
    is_bad = ~np.isfinite(actual).all(axis=-1)
    chosen = np.argmax(np.where(np.isfinite(actual), actual, -np.inf), axis=-1)
    regret = expected.max(axis=-1) - np.take_along_axis(expected, chosen[:, None], axis=-1)[:, 0]
    return np.asarray(np.where(is_bad, np.inf, regret))


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far results behind many ops may be from the oracle: all rows together, and any one row.

    The yardstick is a plain decoder that rounds each op's result once and sums exactly. All rows
    together may be 1.5 x as far as that; one row, whose error is a matter of luck (1.7 x at most
    in 240 draws of right kernels), 3 x as far as its worst: a wrong row is 50 x as far. In float32,
    where summing costs more than storing, it is the limit of a single op.
    """

    overall: float
    worst_row: float

    @classmethod
    def of(cls, dtype: DType, plain: Float64, expected: Float64) -> Tolerance:
        if dtype is DType.FLOAT32:
            return cls(LIMITS[dtype], LIMITS[dtype])
        return cls(1.5 * overall_l2(plain, expected), 3.0 * relative_l2(plain, expected))


def overall_l2(actual: Float64, expected: Float64) -> float:
    """|actual - expected| / |expected| over all rows; NaN and infinity are infinitely far."""
    return relative_l2(actual.reshape(1, -1), expected.reshape(1, -1))
