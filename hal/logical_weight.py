"""A weight as every checkpoint format hands it over, before a kernel family lays it out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hal.dtypes import DType
from hal.tensor import Tensor


class Granularity(StrEnum):
    """How many elements share one scale."""

    NONE = "none"
    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalWeight:
    """Elements in host memory, possibly a memory-mapped slice: read them once, never write.

    values      [out_features, in_features], or a vector; elements of `dtype`
    scales      value = (element - zero) * scale; shape follows `granularity`; None: scale 1
    zeros       like scales; None: symmetric
    group_order [in_features] group of each input feature; None: consecutive groups
    """

    name: str
    values: Tensor
    dtype: DType
    granularity: Granularity = Granularity.NONE
    scales: Tensor | None = None
    zeros: Tensor | None = None
    group_order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)
