"""Norms, activations, rotation, look-up and sampling for CPUs without AVX512-BF16: what works row
by row, for each instruction set that the portable sources are compiled for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hal.device import Capabilities
from hal.kernels.cpu import elementwise, native, rope, sampling
from hal.kernels.cpu.indexing import gather_rows_native
from hal.kernels.cpu.norm import NativeLayerNorm, NativeRmsNorm
from hal.kernels.cpu.portable import LEVELS, Level
from hal.kernels.torch_native.predicates import HasDType
from hal.opset import (
    gated_activation,
    gather_rows,
    layer_norm,
    plain_activation,
    qk_norm_rope,
    rms_norm,
    sample,
)
from hal.opset.attention import RopeProblem
from hal.opset.elementwise import Activation
from hal.opset.sampling import SamplingInputs
from hal.select import Op, Rejects


def _register_on(
    level: Level, op: Op, rejects: Rejects, implementation: Callable[..., Any]
) -> None:
    register = op.family if isinstance(implementation, type) else op.kernel
    register(
        level.name,
        preference=level.preference,
        batch_invariant=True,
        capturable=True,
        rejects=rejects,
        unavailable=level.unavailable,
    )(implementation)


def _register_norms(level: Level, rejects: Rejects) -> None:
    class RmsNorm(NativeRmsNorm):
        part = staticmethod(level.products)

    class LayerNorm(NativeLayerNorm):
        part = staticmethod(level.products)

    _register_on(level, rms_norm, rejects, RmsNorm)
    _register_on(level, layer_norm, rejects, LayerNorm)


def _register_activations(level: Level, rejects: Rejects) -> None:
    def gated(gate_up: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
        """Float32 inside, rounded once."""
        elementwise.run(level.products(), gate_up, activation, out, is_gated=True)

    def plain(x: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
        """Float32 inside, rounded once."""
        elementwise.run(level.products(), x, activation, out, is_gated=False)

    _register_on(level, gated_activation, rejects, gated)
    _register_on(level, plain_activation, rejects, plain)


def _register_rope(level: Level) -> None:
    def rotate(
        qkv: torch.Tensor,
        problem: RopeProblem,
        positions: torch.Tensor,
        cos_sin: torch.Tensor | None,
        q_weight: torch.Tensor | None,
        k_weight: torch.Tensor | None,
        eps: float,
    ) -> None:
        """Float32 inside, rounded once."""
        part = level.products()
        rope.rotate(part, qkv, problem, positions, cos_sin, q_weight, k_weight, eps)

    def rejects(caps: Capabilities, problem: RopeProblem) -> str | None:
        return rope.too_long(problem) or level.lacks(caps, problem.dtype)

    _register_on(level, qk_norm_rope, rejects, rotate)


def _register_sampling(level: Level, rejects: Rejects) -> None:
    def draw(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
        """As sample_avx512."""
        sampling.draw(level.products(), logits, inputs, tokens)

    _register_on(level, sample, rejects, draw)


def _register(level: Level) -> None:
    def needs_dtype(caps: Capabilities, problem: HasDType) -> str | None:
        return level.lacks(caps, problem.dtype)

    def needs_cpu(caps: Capabilities, _problem: object) -> str | None:
        return native.needs(level.feature, caps)

    _register_norms(level, needs_dtype)
    _register_activations(level, needs_dtype)
    _register_rope(level)
    _register_sampling(level, needs_cpu)
    # Copies need no instructions of a level; the module has one function for all.
    _register_on(level, gather_rows, needs_cpu, gather_rows_native)


for _level in LEVELS:
    _register(_level)
