"""The one canonical form in which weights travel from checkpoint readers to kernel families."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from itertools import product

from hal.dtypes import DType
from hal.errors import UnsupportedError
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
    """How a family stores a weight that it is given in floats: codes under scales.

    codes: INT8, INT4 or FLOAT8_E4M3FN; group_size: columns of a row under one scale, None: the
    whole row; has_zeros: int4 codes count from a zero point of their group instead of from 0;
    keeps_activations: products multiply x as it is, in its own dtype.

    Everything is computed in float32 and rounded to nearest even; code * scale is the weight.

    int8: scale = max|w| / 127, code = w * (127 / max|w|).
    fp8: scale = max|w| / 448, code = the OCP e4m3 nearest to w * (448 / max|w|), at most 448.
    int4: scale = extreme / -8 rounded to bfloat16, where extreme is the w of largest magnitude with
    its sign (+ if both signs reach it), so all 16 codes are used. code = w * (1 / scale), held to
    -8 .. 7.
    int4 with zeros: with high = max(w, 0) and low = min(w, 0) of the group, scale = high / 15 -
    low / 15 rounded to bfloat16, zero = -low * (1 / scale) held to 0 .. 15; w * (1 / scale) + zero,
    the product rounded first, is held to 0 .. 15, and the code is what zero taken off leaves.

    Unless keeps_activations, products quantise x to int8 as well: scale = max|x| / 127 of the token
    in int8, and of each run of ACTIVATION_GROUP columns in int4, whose products are scaled per
    group anyway, so that one large activation costs its neighbours in the group precision and not
    the whole token. A largest magnitude (with zeros: high - low) of up to SMALLEST counts as zero;
    an x that is not finite makes the result NaN.
    """

    codes: DType
    group_size: int | None = None
    has_zeros: bool = False
    keeps_activations: bool = False

    def __str__(self) -> str:
        """What --quantization calls it: base[-gN][-asym][-a16]."""
        base = "fp8" if self.codes is DType.FLOAT8_E4M3FN else str(self.codes)
        is_default = self.group_size in (None, _DEFAULT_GROUP)
        parts = (
            base,
            "" if is_default else f"g{self.group_size}",
            "asym" if self.has_zeros else "",
            "a16" if self.keeps_activations and base != "fp8" else "",
        )
        return "-".join(filter(None, parts))

    @property
    def activation_group(self) -> int | None:
        """Columns of x under one scale; None: the whole row."""
        return None if self.group_size is None else ACTIVATION_GROUP

    @property
    def head(self) -> WeightFormat:
        """Of the matrix that makes logits: they decide every token, and 4 bits cost them more than
        they save."""
        return WeightFormat(codes=DType.INT8, keeps_activations=self.keeps_activations)


ACTIVATION_GROUP = 32
SMALLEST = 1e-30  # below, the inverse of a scale is not a finite float32
_DEFAULT_GROUP = 32


def _formats() -> Iterator[WeightFormat]:
    yield WeightFormat(codes=DType.INT8)
    yield WeightFormat(codes=DType.INT8, keeps_activations=True)
    yield WeightFormat(codes=DType.FLOAT8_E4M3FN, keeps_activations=True)
    for keeps_activations, has_zeros, size in product((False, True), (False, True), (32, 64, 128)):
        yield WeightFormat(
            codes=DType.INT4,
            group_size=size,
            has_zeros=has_zeros,
            keeps_activations=keeps_activations,
        )


UNQUANTIZED = "none"
# What --quantization takes beside it, by name.
WEIGHT_FORMATS: Mapping[str, WeightFormat] = {str(format): format for format in _formats()}
# The same as a grammar, for texts.
FORMAT_NAMES = f"{UNQUANTIZED}, int8[-a16], fp8, int4[-g64|-g128][-asym][-a16]"


def find_format(name: str) -> WeightFormat | None:
    """The format called `name`, its suffixes in any order; None for "none".

    Raises UnsupportedError with the nearest names.
    """
    if name == UNQUANTIZED:
        return None
    for known, format in WEIGHT_FORMATS.items():
        if sorted(known.split("-")) == sorted(name.split("-")):
            return format
    nearest = get_close_matches(name, (UNQUANTIZED, *WEIGHT_FORMATS), n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
    raise UnsupportedError(
        f"not supported yet: quantization={name!r}; {hint}choose one of {FORMAT_NAMES}"
    )
