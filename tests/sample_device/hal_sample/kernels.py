"""Kernels of the sample card, registered beside their ops; every other op finds one of hal's."""

from __future__ import annotations

import torch

from hal.device import Capabilities
from hal.dtypes import DType
from hal.opset import rms_norm
from hal.opset.norm import NormProblem


def _rejects(caps: Capabilities, problem: NormProblem) -> str | None:
    """Why this kernel cannot run here, or None. Pure: it is also asked for absent devices."""
    if caps.vendor != "sample":
        return f"runs on sample cards only; this is {caps.name}"
    if problem.dtype is DType.FLOAT16:
        return "sample cards do not add float16"
    return None


@rms_norm.kernel("sample", preference=80, batch_invariant=True, rejects=_rejects)
def rms_norm_sample(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """Row by row in float32, as one work group of the card would."""
    for row in range(x.shape[0]):
        y = x[row].float()
        if residual is not None:
            residual[row] = y + residual[row].float()
            y = residual[row].float()
        scale = torch.rsqrt(y.square().mean() + eps)
        out[row] = y * scale * weight.float()
