"""rms_norm and layer_norm: the residual sum and the norm in one pass over a row in cache."""

from __future__ import annotations

import torch

from hal.kernels.cpu import native
from hal.opset import layer_norm, rms_norm


@rms_norm.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    rejects=native.needs_avx512_bf16,
    unavailable=native.unavailable,
)
def rms_norm_avx512(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """Float32 inside, rounded once after the weight."""
    _norm(x, residual, weight, 0, eps, out)


@layer_norm.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    rejects=native.needs_avx512_bf16,
    unavailable=native.unavailable,
)
def layer_norm_avx512(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """Two passes, centred before squaring; rounded once."""
    _norm(x, residual, weight, bias.data_ptr(), eps, out)


def _norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias_address: int,
    eps: float,
    out: torch.Tensor,
) -> None:
    """A layer norm where there is a bias (bias_address is not 0)."""
    native.load().norm(
        x.data_ptr(),
        x.stride(0),
        0 if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        weight.data_ptr(),
        bias_address,
        out.data_ptr(),
        out.stride(0),
        x.shape[0],
        x.shape[1],
        eps,
        bias_address != 0,
        native.TORCH_CODES[x.dtype],
        torch.get_num_threads(),
    )
