"""How far a kernel may be from the float64 oracle, and how that distance is measured."""

from __future__ import annotations

import math

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
