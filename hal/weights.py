"""The one canonical form in which weights travel from checkpoint readers to kernel families."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """How a family stores a weight that it is given in floats: symmetric codes under scales.

    codes: INT8 or INT4; group_size: columns of a row under one scale, None: the whole row.

    int8: scale = max|w| / 127 in float32. int4: scale = extreme / -8 rounded to bfloat16, where
    extreme is the w of largest magnitude with its sign (+ if both signs reach it), so all 16 codes
    are used. code = w * (1 / scale), for int8 w * (127 / max|w|), in float32, rounded to nearest
    even and held to the codes' range.

    Products quantise x to int8 as well: scale = max|x| / 127 of the token in int8, and of each run
    of ACTIVATION_GROUP columns in int4, whose products are scaled per group anyway, so that one
    large activation costs its neighbours in the group precision and not the whole token. A largest
    magnitude of up to SMALLEST counts as zero; one that is not finite makes the result NaN.
    """

    codes: DType
    group_size: int | None = None

    @property
    def activation_group(self) -> int | None:
        """Columns of x under one scale; None: the whole row."""
        return None if self.group_size is None else ACTIVATION_GROUP


ACTIVATION_GROUP = 32
SMALLEST = 1e-30  # below, the inverse of a scale is not a finite float32

# What --quantization takes, beside "none".
WEIGHT_FORMATS: Mapping[str, WeightFormat] = {
    "int8": WeightFormat(codes=DType.INT8),
    "int4": WeightFormat(codes=DType.INT4, group_size=32),
    "int4-g64": WeightFormat(codes=DType.INT4, group_size=64),
    "int4-g128": WeightFormat(codes=DType.INT4, group_size=128),
}
