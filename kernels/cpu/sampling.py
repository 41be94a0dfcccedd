"""sample without sorting rows: noise and filters in passes over the logits."""

from __future__ import annotations

import torch

from hal.kernels.cpu import native
from hal.kernels.reference.tensors import as_torch
from hal.opset import sample
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
    native.load().sample(
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
