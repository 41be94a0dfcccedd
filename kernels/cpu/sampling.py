"""sample: greedy rows natively, others through torch."""

from __future__ import annotations

import torch

from hal.kernels.cpu import native
from hal.kernels.torch_native.sampling import sample_torch_topk
from hal.opset import sample
from hal.opset.sampling import SamplingInputs


@sample.kernel(
    "avx512",
    preference=100,
    batch_invariant=True,
    rejects=native.needs_cpu,
    unavailable=native.unavailable,
)
def sample_avx512(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
    """One pass over each row where every row is greedy."""
    if not inputs.is_all_greedy:
        sample_torch_topk(logits, inputs, tokens)
        return
    native.load().argmax(
        logits.data_ptr(),
        logits.stride(0),
        logits.shape[0],
        logits.shape[1],
        tokens.data_ptr(),
        torch.get_num_threads(),
    )
