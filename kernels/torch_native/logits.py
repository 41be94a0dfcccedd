"""adjust_logits, mask_logits, logprobs; the top K by partial sort where ties may be looked for."""

from __future__ import annotations

import torch

from hal.kernels.reference.logits import (
    adjust_logits_reference,
    logprobs_reference,
    mask_logits_reference,
    rank_of,
)
from hal.kernels.torch_native.candidates import largest
from hal.kernels.torch_native.predicates import needs_hardware, needs_host_reads
from hal.opset import adjust_logits, logprobs, mask_logits

adjust_logits.kernel("torch", preference=50, rejects=needs_hardware, batch_invariant=True)(
    adjust_logits_reference
)
mask_logits.kernel("torch", preference=50, rejects=needs_hardware, batch_invariant=True)(
    mask_logits_reference
)
# Sorting whole rows is what torch offers an accelerator without stalling it.
logprobs.kernel("torch_sort", preference=50, rejects=needs_hardware, batch_invariant=True)(
    logprobs_reference
)


@logprobs.kernel("torch_topk", preference=60, batch_invariant=True, rejects=needs_host_reads)
def logprobs_torch_topk(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    rank: torch.Tensor,
    top_ids: torch.Tensor,
    top: torch.Tensor,
) -> None:
    """Takes one more than K: where the last two are equal, only a full sort knows the order."""
    k = top.shape[1]
    if k == 0 or k >= logits.shape[1]:
        logprobs_reference(logits, tokens, chosen, rank, top_ids, top)
        return
    best = largest(logits, k + 1)
    if (best.values[:, k - 1] == best.values[:, k]).any():
        logprobs_reference(logits, tokens, chosen, rank, top_ids, top)
        return
    every = logits.log_softmax(dim=-1)
    token = tokens.long().clamp(min=0).unsqueeze(1)
    chosen.copy_(every.gather(1, token).squeeze(1))
    rank.copy_(rank_of(logits, token))
    top_ids.copy_(best.ids[:, :k])
    top.copy_(every.gather(1, best.ids[:, :k]))
