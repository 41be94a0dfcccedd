"""Normalisation over the hidden dimension, with the residual sum in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hal.dtypes import DType
from hal.select import declare
from hal.tensor import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NormProblem:
    """Rows of `hidden_size` elements in `dtype`; statistics in float32."""

    hidden_size: int
    dtype: DType


class NormKind(StrEnum):
    """The ops of this file."""

    RMS = "rms_norm"
    LAYER = "layer_norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormInput:
    """What a block's input is first written as the norm of: arguments of an op of this file.

    bias: layer_norm's; None is rms_norm.
    """

    values: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor | None
    eps: float


@declare(NormProblem)
def rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out: Tensor) -> None:
    """out = y / sqrt(mean(y^2) + eps) * weight, where y = x, or x + residual.

    x, residual, out [T, hidden_size]; weight [hidden_size]; one dtype.
    With a residual, it is set to y (rounded to dtype) first, and y is what is normalised.
    `out` may be `x`. Source: RMSNorm (Zhang and Sennrich 2019).
    """


@declare(NormProblem)
def layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, out: Tensor
) -> None:
    """out = (y - mean(y)) / sqrt(var(y) + eps) * weight + bias, y as in rms_norm.

    x, residual, out [T, hidden_size]; weight, bias [hidden_size]; one dtype. `out` may be `x`.
    Source: layer normalisation (Ba, Kiros and Hinton 2016).
    """
