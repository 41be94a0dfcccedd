"""rms_norm and layer_norm: the residual sum and the norm in one pass over a row in cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from hal.binding import Binder
from hal.kernels.cpu import native
from hal.opset import layer_norm, rms_norm
from hal.opset.norm import NormProblem


@rms_norm.family(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_avx512_bf16,
    unavailable=native.unavailable,
)
class NativeRmsNorm:
    """Float32 inside, rounded once after the weight."""

    part: native.Products = staticmethod(native.load)

    def __init__(self, _problem: NormProblem, _binder: Binder) -> None:
        self._norm = native.Repeated()

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        self._norm(_prepare, self.part().norm, x, residual, weight, None, eps, out)


@layer_norm.family(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_avx512_bf16,
    unavailable=native.unavailable,
)
class NativeLayerNorm:
    """Two passes, centred before squaring; rounded once."""

    part: native.Products = staticmethod(native.load)

    def __init__(self, _problem: NormProblem, _binder: Binder) -> None:
        self._norm = native.Repeated()

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        self._norm(_prepare, self.part().norm, x, residual, weight, bias, eps, out)


def _prepare(
    norm: Callable[..., object],
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
) -> Callable[[int], object]:
    """A layer norm where there is a bias."""
    return partial(
        norm,
        x.data_ptr(),
        x.stride(0),
        0 if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        out.data_ptr(),
        out.stride(0),
        x.shape[0],
        x.shape[1],
        eps,
        bias is not None,
        native.TORCH_CODES[x.dtype],
    )
