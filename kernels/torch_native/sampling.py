"""sample without sorting whole rows where the filters leave few tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from hal.kernels.reference.philox import gumbel_noise_at
from hal.kernels.reference.sampling import (
    NO_TOKEN,
    draw,
    has_finite_maximum,
    keep_sorted,
    sample_reference,
    scale_rows,
)
from hal.kernels.reference.tensors import as_torch
from hal.kernels.torch_native.candidates import Candidates, largest
from hal.kernels.torch_native.predicates import needs_hardware, needs_host_reads
from hal.opset import sample
from hal.opset.sampling import SamplingInputs
from hal.tensor import Tensor

NUM_CANDIDATES = 1024

# Sorting whole rows is what torch offers an accelerator without stalling it.
sample.kernel("torch_sort", preference=50, rejects=needs_hardware, batch_invariant=True)(
    sample_reference
)


@sample.kernel("torch_topk", preference=60, batch_invariant=True, rejects=needs_host_reads)
def sample_torch_topk(logits: torch.Tensor, inputs: SamplingInputs, tokens: torch.Tensor) -> None:
    """Rows whose filters end within the largest values are drawn from those, others in full."""
    if inputs.is_all_greedy or not inputs.has_filters or logits.shape[1] <= NUM_CANDIDATES:
        sample_reference(logits, inputs, tokens)
        return
    temperature = as_torch(inputs.temperature)
    scaled = scale_rows(logits, temperature)
    candidates = largest(scaled, NUM_CANDIDATES)
    is_kept = _kept(scaled, candidates, inputs)
    drawn = _draw_from(candidates, is_kept, inputs)
    is_exact = _ends_within(candidates, is_kept, inputs) | (temperature == 0)
    rest = (~is_exact).nonzero().squeeze(1)
    if len(rest) > 0:
        drawn[rest] = draw(scaled[rest], _rows_of(inputs, rest))
    chosen = torch.where(temperature > 0, drawn, logits.argmax(dim=-1))
    tokens.copy_(torch.where(has_finite_maximum(logits), chosen, NO_TOKEN))


def _kept(scaled: torch.Tensor, candidates: Candidates, inputs: SamplingInputs) -> torch.Tensor:
    top_k = as_torch(inputs.top_k)
    mass_outside = scaled.exp().sum(dim=-1) - candidates.values.exp().sum(dim=-1)
    mass_outside = torch.where(top_k > 0, 0.0, mass_outside.clamp(min=0))
    return keep_sorted(
        candidates.values, top_k, as_torch(inputs.top_p), as_torch(inputs.min_p), mass_outside
    )


def _draw_from(
    candidates: Candidates, is_kept: torch.Tensor, inputs: SamplingInputs
) -> torch.Tensor:
    noise = gumbel_noise_at(as_torch(inputs.seeds), as_torch(inputs.token_index), candidates.ids)
    scores = candidates.values.masked_fill(~is_kept, float("-inf")) + noise
    return candidates.ids.gather(1, scores.argmax(dim=-1, keepdim=True)).squeeze(1)


def _ends_within(
    candidates: Candidates, is_kept: torch.Tensor, inputs: SamplingInputs
) -> torch.Tensor:
    """[N] bool: nothing as small as the last candidate is kept, so nothing outside is."""
    is_edge = candidates.values == candidates.values[:, -1:]
    return ~(is_kept & is_edge).any(dim=-1) & (as_torch(inputs.top_k) < NUM_CANDIDATES)


def _rows_of(inputs: SamplingInputs, rows: torch.Tensor) -> SamplingInputs:
    """The settings that `draw` reads, for some rows."""

    def take(x: Tensor) -> torch.Tensor:
        return as_torch(x)[rows]

    return replace(
        inputs,
        top_k=take(inputs.top_k),
        top_p=take(inputs.top_p),
        min_p=take(inputs.min_p),
        seeds=take(inputs.seeds),
        token_index=take(inputs.token_index),
    )
