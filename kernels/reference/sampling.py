"""sample: whole rows sorted, noise for every id; this file fixes which token a seed gives."""

from __future__ import annotations

import torch

from hal.kernels.reference.philox import gumbel_noise
from hal.kernels.reference.tensors import as_torch
from hal.opset import sample
from hal.opset.sampling import SamplingInputs
from hal.select import Level

NO_TOKEN = -1


@sample.kernel("reference", preference=0, level=Level.REFERENCE, batch_invariant=True)
def sample_reference(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
    """Filters in float32; the noise, and its sum with the logits, in float64."""
    chosen = logits.argmax(dim=-1)
    if not inputs.is_all_greedy:
        temperature = as_torch(inputs.temperature)
        drawn = draw(scale_rows(logits, temperature), inputs)
        chosen = torch.where(temperature > 0, drawn, chosen)
    tokens.copy_(torch.where(has_finite_maximum(logits), chosen, NO_TOKEN))


def has_finite_maximum(logits: torch.Tensor) -> torch.Tensor:
    """[N] bool: rows without NaN whose largest value is finite (amax passes NaN on)."""
    return torch.isfinite(logits.amax(dim=-1))


def scale_rows(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """(logits - max) / temperature: the maximum is 0, so no temperature overflows it."""
    largest = torch.finfo(torch.float32).max
    inverse = temperature.reciprocal().clamp(max=largest).unsqueeze(1)
    return (logits - logits.amax(dim=-1, keepdim=True)) * inverse


def draw(scaled: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """A token of each row of scaled logits whose maximum is 0."""
    if inputs.has_filters:
        scaled = scaled.masked_fill(~_kept(scaled, inputs), float("-inf"))
    noise = gumbel_noise(as_torch(inputs.seeds), as_torch(inputs.token_index), scaled.shape[1])
    return (scaled + noise).argmax(dim=-1)


def _kept(scaled: torch.Tensor, inputs: SamplingInputs) -> torch.Tensor:
    """[N, vocab_size] bool: what top-k, then min-p, then top-p leave."""
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    is_kept = keep_sorted(
        ordered, as_torch(inputs.top_k), as_torch(inputs.top_p), as_torch(inputs.min_p)
    )
    return torch.zeros_like(is_kept).scatter(1, order, is_kept)


def keep_sorted(
    ordered: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    mass_outside: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same for rows sorted in descending order (equal values by id) with maximum 0.

    mass_outside [N]: the sum of exp of what is in the row, but not in `ordered`.
    """
    vocab_size = ordered.shape[1]
    k = torch.where(top_k > 0, top_k, vocab_size).clamp(max=vocab_size).long()
    edge = ordered.gather(1, k.unsqueeze(1) - 1)
    is_in_top_k = ordered >= edge  # values equal to the k-th stay
    weights = ordered.exp()
    has_min_p = weights >= min_p.unsqueeze(1)
    weights = torch.where(is_in_top_k, weights, 0.0)
    mass = weights.sum(dim=-1, keepdim=True)
    if mass_outside is not None:
        mass = mass + mass_outside.unsqueeze(1)
    probabilities = weights / mass
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    # At 1 nothing is cut, whatever the sums round to; the first token always stays.
    has_top_p = (mass_before < top_p.unsqueeze(1)) | (top_p >= 1).unsqueeze(1)
    has_top_p[:, 0] = True
    return is_in_top_k & has_min_p & has_top_p
