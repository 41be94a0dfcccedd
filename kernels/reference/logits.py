"""adjust_logits, mask_logits and logprobs on whole rows in float32."""

from __future__ import annotations

import torch

from hal.kernels.reference.tensors import as_torch
from hal.opset import adjust_logits, logprobs, mask_logits
from hal.opset.sampling import SamplingInputs
from hal.select import Level


@adjust_logits.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def adjust_logits_reference(
    logits: torch.Tensor, inputs: SamplingInputs, out: torch.Tensor
) -> None:
    """Copies the rows, then changes the listed elements only."""
    out.copy_(logits)
    if inputs.has_penalties:
        _penalise(out, inputs)
    if inputs.has_bias:
        index = (as_torch(inputs.bias_rows).long(), as_torch(inputs.bias_ids).long())
        out.index_put_(index, as_torch(inputs.bias_values), accumulate=True)


def _penalise(logits: torch.Tensor, inputs: SamplingInputs) -> None:
    rows = as_torch(inputs.penalty_rows).long()
    ids = as_torch(inputs.penalty_ids).long()
    counts = as_torch(inputs.penalty_counts)
    value = logits[rows, ids]
    repetition = as_torch(inputs.repetition)[rows]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value = value - as_torch(inputs.frequency)[rows] * counts
    value = value - as_torch(inputs.presence)[rows] * (counts > 0)
    logits[rows, ids] = value


@mask_logits.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def mask_logits_reference(
    logits: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor, out: torch.Tensor
) -> None:
    """Spreads the bits to one bool for each id."""
    if out.data_ptr() != logits.data_ptr():
        out.copy_(logits)
    index = rows.long()
    bits = torch.arange(32, device=mask.device, dtype=torch.int32)
    is_allowed = ((mask.unsqueeze(-1) >> bits) & 1).bool().flatten(1)[:, : logits.shape[1]]
    out[index] = out[index].masked_fill(~is_allowed, float("-inf"))


@logprobs.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def logprobs_reference(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    rank: torch.Tensor,
    top_ids: torch.Tensor,
    top: torch.Tensor,
) -> None:
    """Sorts whole rows. A row without a token (-1) has NaN log probabilities by itself."""
    token = tokens.long().clamp(min=0).unsqueeze(1)
    every = logits.log_softmax(dim=-1)
    chosen.copy_(every.gather(1, token).squeeze(1))
    rank.copy_(rank_of(logits, token))
    if top.shape[1] > 0:
        # The logits decide the order: the logarithm rounds different ones to the same value.
        best = logits.sort(dim=-1, descending=True, stable=True).indices[:, : top.shape[1]]
        top_ids.copy_(best)
        top.copy_(every.gather(1, best))


def rank_of(logits: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """[N]: how many ids are likelier than token [N, 1], or as likely with a lower id."""
    value = logits.gather(1, token)
    ids = torch.arange(logits.shape[1], device=logits.device)
    is_before = (logits > value) | ((logits == value) & (ids < token))
    return is_before.sum(dim=-1)
