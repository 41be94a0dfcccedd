"""The rows of sampling_cases: which logits meet which settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hal.conformance.case import Case
from hal.conformance.sampling_cases import (
    AdjustCase,
    DistributionCase,
    LogprobsCase,
    MaskCase,
    Rows,
    SampleCase,
)
from hal.conformance.sampling_oracle import RowSettings
from hal.conformance.stage import Float64
from hal.dtypes import DType
from hal.opset.sampling import SampleProblem


def smooth(rng: np.random.Generator, num_rows: int, vocab_size: int) -> Float64:
    """All different, as a model's logits are."""
    return rng.standard_normal((num_rows, vocab_size)) * 3


def peaked(rng: np.random.Generator, num_rows: int, vocab_size: int) -> Float64:
    """A few likely ids above a broad floor."""
    rows = rng.standard_normal((num_rows, vocab_size))
    for row in rows:
        row[rng.integers(0, vocab_size, 20)] += 12
    return rows


def tied(rng: np.random.Generator, num_rows: int, vocab_size: int) -> Float64:
    """Five distinct values only: every edge of every filter is a tie."""
    return rng.integers(-2, 3, (num_rows, vocab_size)).astype(np.float64)


def broken(rng: np.random.Generator, num_rows: int, vocab_size: int) -> Float64:
    """NaN, infinity, nothing finite; and bans, which are fine."""
    rows = smooth(rng, num_rows, vocab_size)
    rows[0, -1] = np.nan
    rows[1, 0] = np.inf
    rows[2] = -np.inf
    rows[3] = np.nan
    rows[4, : vocab_size - 1] = -np.inf
    rows[5, ::2] = -np.inf
    return rows


_GREEDY = (RowSettings(),) * 8
_WARM = tuple(
    RowSettings(temperature=t, seed=s, token_index=i)
    for t, s, i in (
        (1.0, 0, 0),
        (0.7, 1, 5),
        (1.8, 2**64 - 1, 2**31 - 1),
        (1e-3, 0xDEADBEEF00000001, 17),
        (1.0, 2**32, 0),
        (1.0, 1, 0),
        (1e-30, 3, 3),
    )
)
_FILTERED = tuple(
    replace(settings, seed=100 + i, token_index=i)
    for i, settings in enumerate(
        (
            RowSettings(temperature=1.0, top_k=1),
            RowSettings(temperature=1.0, top_k=3),
            RowSettings(temperature=1.0, top_k=10_000),
            RowSettings(temperature=1.0, top_p=0.1),
            RowSettings(temperature=1.0, top_p=0.9),
            RowSettings(temperature=1.0, top_p=1e-6),
            RowSettings(temperature=1.0, min_p=0.3),
            RowSettings(temperature=1.0, min_p=1.0),
            RowSettings(temperature=1.0, top_k=20, top_p=0.8, min_p=0.02),
            RowSettings(temperature=2.0, top_k=7, top_p=0.5),
            RowSettings(temperature=0.0),
            RowSettings(temperature=1.0),
        )
    )
)
_SETTINGS = {
    "greedy": _GREEDY,
    "warm": _WARM,
    "filtered": _FILTERED,
    # Twelve draws of the same settings: what the filters leave is drawn from, not only its best.
    "top-k-draws": tuple(RowSettings(temperature=1.0, top_k=4, seed=i) for i in range(12)),
    "top-p-draws": tuple(RowSettings(temperature=1.5, top_p=0.7, seed=i) for i in range(12)),
    "min-p-draws": tuple(RowSettings(temperature=1.5, min_p=0.1, seed=i) for i in range(12)),
    "mixed": (*_GREEDY[:2], *_WARM[:2], *_FILTERED[3:6]),
}
_LOGITS: dict[str, Rows] = {"smooth": smooth, "peaked": peaked, "tied": tied}


def sampling_cases() -> Iterator[Case]:
    # 2500 is beyond what a partial sort looks at first, 1003 is no multiple of anything.
    for vocab_size in (7, 1003, 2500):
        for logits_name, logits in _LOGITS.items():
            for name, rows in _SETTINGS.items():
                yield SampleCase(
                    op="sample",
                    name=f"{name}-{logits_name}-V{vocab_size}",
                    problem=SampleProblem(vocab_size=vocab_size),
                    dtype=DType.FLOAT32,
                    rows=rows,
                    logits=logits,
                )
    problem = SampleProblem(vocab_size=1203)
    for name in ("greedy", "warm", "filtered"):
        yield SampleCase(
            op="sample",
            name=f"{name}-broken",
            problem=problem,
            dtype=DType.FLOAT32,
            rows=_SETTINGS[name],
            logits=broken,
        )
    yield DistributionCase(
        op="sample",
        name="distribution",
        problem=SampleProblem(vocab_size=8),
        dtype=DType.FLOAT32,
    )


def adjust_cases() -> Iterator[AdjustCase]:
    for has_penalties, has_bias, is_in_place in (
        (True, False, False),
        (False, True, False),
        (True, True, False),
        (True, True, True),
        (False, False, False),
    ):
        parts = ("penalties" * has_penalties, "bias" * has_bias, "in-place" * is_in_place)
        yield AdjustCase(
            op="adjust_logits",
            name="-".join(p for p in parts if p) or "nothing",
            problem=SampleProblem(vocab_size=61),
            dtype=DType.FLOAT32,
            has_penalties=has_penalties,
            has_bias=has_bias,
            is_in_place=is_in_place,
        )


def mask_cases() -> Iterator[MaskCase]:
    for vocab_size, rows, is_in_place in (
        (128, (0,), False),
        (128, (4, 1), True),
        (1003, (2, 0, 3), False),
        (1003, (0, 1, 2, 3, 4), True),
    ):
        place = "-in-place" * is_in_place
        yield MaskCase(
            op="mask_logits",
            name=f"rows{len(rows)}-V{vocab_size}{place}",
            problem=SampleProblem(vocab_size=vocab_size),
            dtype=DType.FLOAT32,
            rows=rows,
            is_in_place=is_in_place,
        )


def logprobs_cases() -> Iterator[LogprobsCase]:
    for vocab_size in (61, 1003):
        for logits_name, logits in _LOGITS.items():
            for num_top in (0, 1, 5, 20):
                yield LogprobsCase(
                    op="logprobs",
                    name=f"top{num_top}-{logits_name}-V{vocab_size}",
                    problem=SampleProblem(vocab_size=vocab_size),
                    dtype=DType.FLOAT32,
                    num_top=num_top,
                    logits=logits,
                )
    yield LogprobsCase(
        op="logprobs",
        name="every-id",
        problem=SampleProblem(vocab_size=20),
        dtype=DType.FLOAT32,
        num_top=20,
        logits=tied,
    )
