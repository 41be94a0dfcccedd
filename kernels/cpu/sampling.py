"""sample without sorting rows: noise and filters in passes over the logits; and mask_logits."""

from __future__ import annotations

from types import ModuleType

import torch

from hal.kernels.cpu import native
from hal.kernels.reference.tensors import as_torch
from hal.opset import mask_logits, sample
from hal.opset.sampling import SamplingInputs


@sample.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    capturable=True,
    rejects=native.needs_cpu,
    unavailable=native.unavailable,
)
def sample_avx512(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
    """Noise in float32 finds the few tokens whose float64 scores, as the reference has them, can
    win. Filters sort only tokens above a cutoff, lowered until nothing they keep is missing."""
    draw(native.load(), logits, inputs, tokens)


def draw(
    part: ModuleType, logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor
) -> None:
    """By the passes of one part of the native module."""
    part.sample(
        logits.data_ptr(),
        logits.stride(0),
        logits.shape[0],
        logits.shape[1],
        0 if inputs.is_all_greedy else as_torch(inputs.temperature).data_ptr(),
        as_torch(inputs.top_k).data_ptr(),
        as_torch(inputs.top_p).data_ptr(),
        as_torch(inputs.min_p).data_ptr(),
        as_torch(inputs.seeds).data_ptr(),
        as_torch(inputs.token_index).data_ptr(),
        inputs.has_filters,
        tokens.data_ptr(),
        torch.get_num_threads(),
    )


@mask_logits.kernel(
    "avx512_bf16",
    preference=100,
    batch_invariant=True,
    rejects=native.needs_cpu,
    unavailable=native.unavailable,
)
def mask_logits_native(
    logits: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor, out: torch.Tensor
) -> None:
    """Passes over 32 ids whose bits are all set, as most are inside a string."""
    if out.data_ptr() != logits.data_ptr():
        out.copy_(logits)
    native.load().mask_logits(
        out.data_ptr(),
        out.stride(0),
        out.shape[1],
        rows.data_ptr(),
        rows.shape[0],
        mask.data_ptr(),
        mask.stride(0),
        torch.get_num_threads(),
    )
