"""The native samplers draw the reference's tokens, in passes instead of sorts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from hal.kernels.reference.sampling import sample_reference
from hal.opset import sample
from hal.opset.sampling import SamplingInputs

NUM_ROWS = 40


@dataclass(frozen=True, slots=True)
class Settings:
    """One row's settings; every row of a test has the same, with its own seed."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def has_filters(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def inputs(settings: Settings, num_rows: int = NUM_ROWS) -> SamplingInputs:
    rows = torch.arange(num_rows)
    nothing, none = torch.empty(0, dtype=torch.int32), torch.empty(0)
    return SamplingInputs(
        temperature=torch.full((num_rows,), settings.temperature),
        top_k=torch.full((num_rows,), settings.top_k, dtype=torch.int32),
        top_p=torch.full((num_rows,), settings.top_p),
        min_p=torch.full((num_rows,), settings.min_p),
        seeds=(rows - 3) * 0x123456789ABC,
        token_index=(rows * 3).int(),
        bias_rows=nothing,
        bias_ids=nothing,
        bias_values=none,
        penalty_rows=nothing,
        penalty_ids=nothing,
        penalty_counts=nothing,
        presence=none,
        frequency=none,
        repetition=none,
        is_all_greedy=settings.temperature == 0,
        has_filters=settings.has_filters,
        has_bias=False,
        has_penalties=False,
    )


def sampled(family: str, logits: torch.Tensor, settings: Settings) -> list[int]:
    tokens = torch.full((len(logits),), 99, dtype=torch.int32)
    draw = sample.kernels[family].implementation
    draw(logits, inputs(settings, len(logits)), tokens)
    return tokens.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(0.0),
        Settings(0.01),
        Settings(0.7),
        Settings(5.0),
        Settings(1.0, top_k=1),
        Settings(1.5, top_k=50),
        Settings(0.7, top_k=20, top_p=0.8),
        Settings(1.0, top_k=10_000, top_p=0.97, min_p=1e-4),
        Settings(1.0, top_p=0.9),
        Settings(1.0, top_p=1e-6),
        Settings(1.0, min_p=0.05),
        Settings(1.0, top_p=0.95, min_p=1e-3),
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab_size", [1, 5, 64, 1003])
@pytest.mark.parametrize("spread", [0.2, 3.0, 30.0])
def test_same_tokens_as_the_reference(
    family: str, spread: float, vocab_size: int, settings: Settings
) -> None:
    """From flat rows, where filters keep nearly everything, to rows with one likely token."""
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(NUM_ROWS, vocab_size, generator=generator) * spread
    logits[:, 1::7] = -math.inf
    expected = torch.empty(NUM_ROWS, dtype=torch.int32)
    sample_reference(logits, inputs(settings), expected)
    assert sampled(family, logits, settings) == expected.tolist()


@pytest.mark.parametrize("settings", [Settings(1.0), Settings(1.0, top_k=2)], ids=str)
def test_ties_at_the_edge_stay(family: str, settings: Settings) -> None:
    logits = torch.zeros(NUM_ROWS, 30)
    logits[:, 11:] = -1.0
    expected = torch.empty(NUM_ROWS, dtype=torch.int32)
    sample_reference(logits, inputs(settings), expected)
    tokens = sampled(family, logits, settings)
    assert tokens == expected.tolist()
    assert len(set(tokens) & set(range(11))) > 2


@pytest.mark.parametrize("settings", [Settings(0.0), Settings(0.8), Settings(0.8, top_p=0.5)])
def test_rows_without_a_token(family: str, settings: Settings) -> None:
    """Infinite or undefined rows give -1 and leave their neighbours alone."""
    logits = torch.full((5, 37), -math.inf)
    logits[0, 36] = 5.0
    logits[1, 20] = math.nan
    logits[3, 7] = math.inf
    logits[4, 0] = -1e30
    assert sampled(family, logits, settings) == [36, -1, -1, -1, 0]


def test_greedy_takes_the_lowest_id_of_the_largest(family: str) -> None:
    logits = torch.zeros(2, 50)
    logits[0, [17, 16, 49]] = 7.0
    logits[1, [49, 33]] = 1.0
    assert sampled(family, logits, Settings(0.0)) == [16, 33]
