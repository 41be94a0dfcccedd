"""Rows of logits of a large vocabulary, adjusted, drawn from and told the likelihood of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hal.kernels.triton.verify.site import Site
from hal.opset.sampling import SampleProblem, SamplingInputs

VOCAB_SIZE = 128256
NUM_ROWS = 4


def sampling_sites() -> Iterator[Site]:
    """Drawing needs another program for each combination of what can be skipped."""
    problem = SampleProblem(vocab_size=VOCAB_SIZE)
    for name, is_all_greedy, has_filters in (
        ("greedy", True, False),
        ("warm", False, False),
        ("filtered", False, True),
    ):
        inputs = _inputs(is_all_greedy, has_filters)
        yield Site(
            op="sample",
            name=name,
            problem=problem,
            call=partial(_sample, inputs),
            reads_wide=not has_filters,  # tuning.toml says why
        )
    yield Site(op="logprobs", name="top", problem=problem, call=_logprobs)
    yield Site(
        op="adjust_logits",
        name="penalties-bias",
        problem=problem,
        call=partial(_adjust, _inputs(False, True)),
        reads_wide=False,  # listed elements, anywhere
    )


def _ids() -> torch.Tensor:
    return torch.empty(NUM_ROWS, dtype=torch.int32)


def _floats() -> torch.Tensor:
    return torch.empty(NUM_ROWS)


def _inputs(is_all_greedy: bool, has_filters: bool) -> SamplingInputs:
    return SamplingInputs(
        temperature=_floats(),
        top_k=_ids(),
        top_p=_floats(),
        min_p=_floats(),
        seeds=torch.empty(NUM_ROWS, dtype=torch.int64),
        token_index=_ids(),
        bias_rows=_ids(),
        bias_ids=_ids(),
        bias_values=_floats(),
        penalty_rows=_ids(),
        penalty_ids=_ids(),
        penalty_counts=_ids(),
        presence=_floats(),
        frequency=_floats(),
        repetition=_floats(),
        is_all_greedy=is_all_greedy,
        has_filters=has_filters,
        has_bias=True,
        has_penalties=True,
    )


def _sample(inputs: SamplingInputs, bound: Any) -> None:
    bound(torch.empty((NUM_ROWS, VOCAB_SIZE)), inputs, _ids())


def _adjust(inputs: SamplingInputs, bound: Any) -> None:
    logits = torch.empty((NUM_ROWS, VOCAB_SIZE))
    bound(logits, inputs, logits)


def _logprobs(bound: Any) -> None:
    logits, ids = (
        torch.empty((NUM_ROWS, VOCAB_SIZE)),
        torch.empty((NUM_ROWS, 20), dtype=torch.int32),
    )
    bound(logits, _ids(), _floats(), _ids(), ids, torch.empty((NUM_ROWS, 20)))
