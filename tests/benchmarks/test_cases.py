"""Cases have exact lengths, and every arm gets the same prompts."""

from __future__ import annotations

import models
import pytest
from peers.cases import CASES, SHAPES, Kind, Length, requests


def test_the_cases_and_their_tokens() -> None:
    found = {
        name: (case.kind, case.num_requests, case.max_len, sum(n.output for n in case.lengths))
        for name, case in CASES.items()
    }
    assert found == {
        "decode-1": (Kind.DECODE, 1, 97, 65),
        "prefill-1024": (Kind.PREFILL, 1, 1025, 1),
        "decode-8": (Kind.DECODE, 8, 97, 520),
        "decode-32": (Kind.DECODE, 32, 97, 2080),
        "mixed-64": (Kind.MIXED, 64, 380, 4619),
        "decode-8k": (Kind.DECODE, 1, 8192, 65),
    }


def test_mixed_lengths_are_drawn_once_and_for_all() -> None:
    lengths = CASES["mixed-64"].lengths
    assert sum(length.prompt for length in lengths) == 8271
    assert all(32 <= n.prompt <= 256 and 16 <= n.output <= 128 for n in lengths)
    assert len(set(lengths)) > 60


@pytest.mark.parametrize("name", CASES)
def test_prompts_are_exact_equal_for_all_arms_and_share_no_start(name: str) -> None:
    case = CASES[name]
    work = requests(case, vocab_size=1000)
    assert [Length(len(w.prompt), w.num_output) for w in work] == list(case.lengths)
    assert work == requests(case, vocab_size=1000)
    assert {token for w in work for token in w.prompt} <= set(range(2, 1000))
    assert len({w.prompt[:8] for w in work}) == len(work)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_case_fits_every_shape(shape: str) -> None:
    longest = max(case.max_len for case in CASES.values())
    assert longest <= models.SHAPES[shape].max_position_embeddings


def test_mean_context_is_that_of_a_decode_step() -> None:
    assert CASES["decode-1"].mean_context == 32 + 65 / 2
