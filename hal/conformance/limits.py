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


def depth_limit(dtype: DType, actual_plain: Float64, expected: Float64) -> float:
    """The limit of results behind many ops: 1.5 x the worst row of the plain decoder.

    The plain decoder rounds each op's result once and sums exactly, so a kernel may add half of
    that again; in float32, where summing costs more than storing, it is the limit of one op.
    """
    if dtype is DType.FLOAT32:
        return LIMITS[dtype]
    return 1.5 * relative_l2(actual_plain, expected)
