"""Activations and sums."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hal.dtypes import DType
from hal.select import declare
from hal.tensor import Tensor


class Activation(StrEnum):
    """Activation functions by the names that model configs use."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationProblem:
    """Rows of `width` results in `dtype`; computed in float32."""

    width: int
    activation: Activation
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwiseProblem:
    """Rows of `width` elements in `dtype`."""

    width: int
    dtype: DType


@declare(ActivationProblem)
def gated_activation(gate_up: Tensor, activation: Activation, out: Tensor) -> None:
    """out = activation(gate) * up; gate_up [T, 2 * width] holds gate then up, out [T, width].

    Source: GLU variants (Shazeer 2020).
    """


@declare(ActivationProblem)
def plain_activation(x: Tensor, activation: Activation, out: Tensor) -> None:
    """out = activation(x); x, out [T, width]. `out` may be `x`."""


@declare(ElementwiseProblem)
def add(x: Tensor, y: Tensor, out: Tensor) -> None:
    """out = x + y; all [T, width]. `out` may be `x`."""
