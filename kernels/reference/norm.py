"""rms_norm and layer_norm, every row in float32."""

from __future__ import annotations

import torch

from hal.kernels.reference.tensors import widen
from hal.opset import layer_norm, rms_norm
from hal.select import Level


def add_residual(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """x, or x + residual: that sum is stored in `residual` first, rounded, and read back."""
    if residual is None:
        return x
    residual.copy_(widen(x) + widen(residual))
    return residual


@rms_norm.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def rms_norm_reference(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """Rounds once, after the weight."""
    y = widen(add_residual(x, residual))
    mean_square = (y * y).mean(dim=-1, keepdim=True)
    out.copy_(y * torch.rsqrt(mean_square + eps) * weight)


@layer_norm.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def layer_norm_reference(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """Centres before squaring: no cancellation when the mean is large. Rounds once."""
    y = widen(add_residual(x, residual))
    centred = y - y.mean(dim=-1, keepdim=True)
    variance = (centred * centred).mean(dim=-1, keepdim=True)
    out.copy_(centred * torch.rsqrt(variance + eps) * weight + bias)
