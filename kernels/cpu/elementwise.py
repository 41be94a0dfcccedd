"""gated_activation and plain_activation in one pass."""

from __future__ import annotations

from types import ModuleType

import torch

from hal.kernels.cpu import native
from hal.opset import gated_activation, plain_activation
from hal.opset.elementwise import Activation


@gated_activation.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_avx512_bf16,
    unavailable=native.unavailable,
)
def gated_activation_avx512(
    gate_up: torch.Tensor, activation: Activation, out: torch.Tensor
) -> None:
    """Float32 inside, rounded once."""
    run(native.load(), gate_up, activation, out, is_gated=True)


@plain_activation.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_avx512_bf16,
    unavailable=native.unavailable,
)
def plain_activation_avx512(x: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
    """Float32 inside, rounded once."""
    run(native.load(), x, activation, out, is_gated=False)


def run(
    part: ModuleType,
    x: torch.Tensor,
    activation: Activation,
    out: torch.Tensor,
    *,
    is_gated: bool,
) -> None:
    """By the kernel of one part of the native module."""
    part.activate(
        x.data_ptr(),
        x.stride(0),
        out.data_ptr(),
        out.stride(0),
        out.shape[0],
        out.shape[1],
        native.ACTIVATION_CODES[activation],
        is_gated,
        native.TORCH_CODES[x.dtype],
        torch.get_num_threads(),
    )
