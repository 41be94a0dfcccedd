"""rms_norm and layer_norm: the residual sum and the norm in one pass over a row in registers."""

from __future__ import annotations

import torch

from hal.binding import Binder
from hal.device import Capabilities
from hal.kernels.triton.predicates import PREFERENCE, needs_float, unavailable
from hal.kernels.triton.program import Program, next_power_of_2
from hal.kernels.triton.tuning import launch_options
from hal.opset import layer_norm, rms_norm
from hal.opset.norm import NormProblem

_RMS_NORM = Program("norm", "rms_norm")
_LAYER_NORM = Program("norm", "layer_norm")
# 32 values for each of 512 threads: more would spill.
_WIDEST = 16384


def _rejects(caps: Capabilities, problem: NormProblem) -> str | None:
    if problem.hidden_size > _WIDEST:
        return f"keeps a row of up to {_WIDEST} in registers; hidden_size is {problem.hidden_size}"
    return needs_float(caps, problem)


def _options(problem: NormProblem, binder: Binder) -> dict[str, int]:
    width = problem.hidden_size
    row_bytes = problem.dtype.num_bytes(width)
    shape_class = "narrow" if row_bytes <= 4096 else "wide" if row_bytes <= 8192 else "widest"
    options = launch_options(binder.selector.caps, "norm", shape_class)
    return {**options, "WIDTH": width, "BLOCK": next_power_of_2(width)}


@rms_norm.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=_rejects,
    unavailable=unavailable,
)
class TritonRmsNorm:
    """Float32 inside, rounded once after the weight. Every tensor is contiguous."""

    def __init__(self, problem: NormProblem, binder: Binder) -> None:
        self._options = _options(problem, binder)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        _RMS_NORM.launch((len(x),), x, residual, weight, out, eps, **self._options)


@layer_norm.family(
    "triton",
    preference=PREFERENCE,
    batch_invariant=True,
    rejects=_rejects,
    unavailable=unavailable,
)
class TritonLayerNorm:
    """Centred before squaring; rounded once. Every tensor is contiguous."""

    def __init__(self, problem: NormProblem, binder: Binder) -> None:
        self._options = _options(problem, binder)

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        eps: float,
        out: torch.Tensor,
    ) -> None:
        _LAYER_NORM.launch((len(x),), x, residual, weight, bias, out, eps, **self._options)
