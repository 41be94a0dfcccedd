"""rms_norm and layer_norm through torch's own."""

from __future__ import annotations

import torch
from torch.nn import functional

from hal.kernels.torch_native.predicates import needs_float
from hal.opset import layer_norm, rms_norm
from hal.select import on_accelerators


def add_residual(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """x, or the sum: torch adds in float32 and rounds once, straight into `residual`."""
    return x if residual is None else torch.add(x, residual, out=residual)


@rms_norm.kernel("torch", preference=50, capturable=on_accelerators, rejects=needs_float)
def rms_norm_torch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """torch.nn.functional.rms_norm: statistics in float32."""
    out.copy_(functional.rms_norm(add_residual(x, residual), weight.shape, weight, eps))


@layer_norm.kernel("torch", preference=50, capturable=on_accelerators, rejects=needs_float)
def layer_norm_torch(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """torch.nn.functional.layer_norm: statistics in float32."""
    out.copy_(functional.layer_norm(add_residual(x, residual), weight.shape, weight, bias, eps))
