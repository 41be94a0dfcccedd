"""What a block is given: rows as they are, or what it is to norm first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hal.conformance import oracle
from hal.conformance.case import Check, equal
from hal.conformance.limits import LIMITS, relative_l2
from hal.conformance.stage import Float64, Stage, Value
from hal.dtypes import DType
from hal.opset.norm import NormInput, NormKind
from hal.tensor import Tensor

_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Rows:
    """x [T, hidden_size], which the block multiplies; the norm's inputs where it makes x itself."""

    x: Float64
    values: Float64
    residual: Float64


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments of one call, and what it must leave in them."""

    rows: Rows
    x: Tensor
    norm: NormInput | None
    dtype: DType

    def checks(self, stage: Stage) -> Iterator[Check]:
        if self.norm is None:
            return
        assert self.norm.residual is not None
        total = stage.place(self.rows.values + self.rows.residual, self.dtype).host
        yield equal("residual", stage.read(self.norm.residual), total)
        yield Check("norm", relative_l2(stage.read(self.x), self.rows.x), LIMITS[self.dtype])


class BlockInput:
    """Makes rows and gives them to a block whose problem has this norm, or none."""

    def __init__(self, stage: Stage, hidden_size: int, dtype: DType, norm: NormKind | None) -> None:
        self._stage = stage
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._norm = norm
        if norm is not None:
            self._weight = self._normal((hidden_size,))
            self._bias = self._normal((hidden_size,)) if norm is NormKind.LAYER else None

    def rows(self, num_rows: int) -> Rows:
        shape = (num_rows, self._hidden_size)
        if self._norm is None:
            x = self._normal(shape).host
            return Rows(x, x, x)
        values, residual = self._normal(shape).host, self._normal(shape).host
        total = self._place(values + residual).host
        if self._bias is None:
            x = oracle.rms_norm(total, self._weight.host, _EPS)
        else:
            x = oracle.layer_norm(total, self._weight.host, self._bias.host, _EPS)
        return Rows(self._place(x).host, values, residual)

    def give(self, rows: Rows) -> Given:
        """Fresh tensors: a norm's residual changes."""
        if self._norm is None:
            return Given(rows, self._place(rows.x).device, None, self._dtype)
        norm = NormInput(
            values=self._place(rows.values).device,
            residual=self._place(rows.residual).device,
            weight=self._weight.device,
            bias=None if self._bias is None else self._bias.device,
            eps=_EPS,
        )
        return Given(rows, self._stage.poisoned(rows.x.shape, self._dtype), norm, self._dtype)

    def _normal(self, shape: tuple[int, ...]) -> Value:
        return self._stage.normal(shape, self._dtype)

    def _place(self, values: Float64) -> Value:
        return self._stage.place(values, self._dtype)


def cut(rows: list[Rows], spans: list[slice]) -> Rows:
    """A span of each, one after the other."""
    pairs = list(zip(rows, spans, strict=True))
    return Rows(
        np.concatenate([r.x[s] for r, s in pairs]),
        np.concatenate([r.values[s] for r, s in pairs]),
        np.concatenate([r.residual[s] for r, s in pairs]),
    )
