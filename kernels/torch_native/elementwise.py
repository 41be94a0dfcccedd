"""Activations and sums in the dtype of the rows, no upcast copies.

Activations are not batch-invariant for the reason given with the reference.
"""

from __future__ import annotations

import torch

from hal.kernels.reference.elementwise import activate
from hal.kernels.torch_native.predicates import needs_float
from hal.opset import add, gated_activation, plain_activation
from hal.opset.elementwise import Activation
from hal.select import on_accelerators


@gated_activation.kernel("torch", preference=50, capturable=on_accelerators, rejects=needs_float)
def gated_activation_torch(
    gate_up: torch.Tensor, activation: Activation, out: torch.Tensor
) -> None:
    """Rounds twice: after the activation and after the product."""
    gate, up = gate_up.chunk(2, dim=-1)
    torch.mul(activate(gate, activation), up, out=out)


@plain_activation.kernel("torch", preference=50, capturable=on_accelerators, rejects=needs_float)
def plain_activation_torch(x: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
    """torch computes 16-bit activations in float32 and rounds once."""
    out.copy_(activate(x, activation))


@add.kernel(
    "torch", preference=50, capturable=on_accelerators, rejects=needs_float, batch_invariant=True
)
def add_torch(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """One pass, one rounding."""
    torch.add(x, y, out=out)
