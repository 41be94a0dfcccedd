"""The one canonical form in which weights travel from checkpoint readers to kernel families."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hal.dtypes import DType
from hal.tensor import Tensor


class Granularity(StrEnum):
    """What one scale covers."""

    NONE = "none"
    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogicalWeight:
    """A slice of one checkpoint tensor in host memory, as [rows = outputs, columns = inputs].

    values may be a strided view of a mapped file: read it, never write it, never keep it.
    weight = (values - zeros) * scales where scales are given; group_order [columns] int32 is the
    group of each column where a quantiser reordered them.
    """

    values: Tensor
    dtype: DType
    scales: Tensor | None = None
    granularity: Granularity = Granularity.NONE
    zeros: Tensor | None = None
    group_order: Tensor | None = None
