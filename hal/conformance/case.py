"""What a case is, and what comes out of running one."""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hal.conformance.limits import LIMITS, Tolerance, overall_l2, relative_l2
from hal.conformance.stage import Float64, Stage
from hal.dtypes import DType
from hal.select import Kernel
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Check:
    """One quantity of one run: `error` must not exceed `limit`."""

    quantity: str
    error: float
    limit: float

    @property
    def is_ok(self) -> bool:
        return self.error <= self.limit

    @property
    def ratio(self) -> float:
        """How much of the limit is used: at most 1 passes. NaN, and any error where none is
        allowed, is infinitely much."""
        if self.limit > 0 and not math.isnan(self.error):
            return self.error / self.limit
        return 0.0 if self.error == 0 else math.inf

    def __str__(self) -> str:
        return f"{self.quantity}: error {self.error:.3g}, limit {self.limit:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(ABC):
    """One problem of one op with its inputs: how to call a kernel, and what must come out."""

    op: str
    name: str
    problem: Any
    dtype: DType

    @property
    def label(self) -> str:
        return f"{self.name}-{self.dtype}"

    @property
    def seed(self) -> int:
        return zlib.crc32(f"{self.op}-{self.label}".encode())

    @abstractmethod
    def run(self, kernel: Kernel, stage: Stage) -> Iterator[Check]:
        """Call the kernel; every quantity it writes, compared with the oracle."""

    def close(self, quantity: str, actual: Float64, expected: Float64) -> Check:
        """Within the limit of this case's dtype."""
        return Check(quantity, relative_l2(actual, expected), LIMITS[self.dtype])


def within(
    quantity: str, actual: Float64, expected: Float64, tolerance: Tolerance
) -> Iterator[Check]:
    """Rows behind many ops: all of them together, and the worst one."""
    yield Check(f"{quantity}, overall", overall_l2(actual, expected), tolerance.overall)
    yield Check(f"{quantity}, worst row", relative_l2(actual, expected), tolerance.worst_row)


def equal(quantity: str, actual: NDArray[Any], expected: NDArray[Any]) -> Check:
    """The same elements, NaN included; the error counts those that differ."""
    if actual.shape != expected.shape:
        return Check(f"{quantity}: shape {actual.shape} for {expected.shape}", 1.0, 0.0)
    is_same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    return Check(quantity, float(np.count_nonzero(~is_same)), 0.0)


@dataclass(frozen=True, slots=True)
class Guarded:
    """An output of `num_rows` rows with one more behind it that nobody may write."""

    buffer: Tensor
    num_rows: int

    @property
    def out(self) -> Tensor:
        return self.buffer[: self.num_rows]

    def read(self, stage: Stage) -> Float64:
        return stage.read(self.out)

    def check(self, stage: Stage) -> Check:
        written = ~np.isnan(stage.read(self.buffer)[self.num_rows :])
        return Check("writes behind out", float(np.count_nonzero(written)), 0.0)


def guarded(stage: Stage, shape: tuple[int, ...], dtype: DType) -> Guarded:
    """Poisoned memory for an output of `shape`."""
    return Guarded(stage.poisoned((shape[0] + 1, *shape[1:]), dtype), shape[0])
