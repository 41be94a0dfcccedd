"""Activations and sums in float32, rounded once.

Activations are not batch-invariant: torch computes the last elements of a tensor, those that fill
no vector, with another exponential, and which ones those are depends on the number of rows.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hal.kernels.reference.tensors import widen
from hal.opset import add, gated_activation, plain_activation
from hal.opset.elementwise import Activation
from hal.select import Level


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    """activation(x) in the dtype of x."""
    match activation:
        case Activation.SILU:
            return functional.silu(x)
        case Activation.GELU:
            return functional.gelu(x)
        case Activation.GELU_TANH:
            return functional.gelu(x, approximate="tanh")
        case Activation.RELU:
            return functional.relu(x)


@gated_activation.kernel("reference", preference=0, level=Level.REFERENCE)
def gated_activation_reference(
    gate_up: torch.Tensor, activation: Activation, out: torch.Tensor
) -> None:
    """Both halves upcast, one product, rounded once."""
    gate, up = widen(gate_up).chunk(2, dim=-1)
    out.copy_(activate(gate, activation) * up)


@plain_activation.kernel("reference", preference=0, level=Level.REFERENCE)
def plain_activation_reference(x: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
    """Upcast, rounded once."""
    out.copy_(activate(widen(x), activation))


@add.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def add_reference(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """One rounding."""
    out.copy_(widen(x) + widen(y))
