"""Compares what several devices made of the same prompts; knows arrays only, no devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hal.cli.info.prove_run import RunFacts
from hal.conformance.limits import LIMITS, relative_l2
from hal.dtypes import DType, parse_dtype

SCHEMA_VERSION = 1
# How much less likely the other device's token may be, in nats, where two devices part ways. The
# order of summation alone moves logits by this much in these types.
TIE_LIMITS = {DType.FLOAT32: 1e-3, DType.FLOAT16: 0.05, DType.BFLOAT16: 0.2}


class Verdict(StrEnum):
    """AGREE: equal tokens. TIE: the first different token was as likely within the limit."""

    AGREE = "agrees"
    TIE = "agrees up to a tie"
    DIFFER = "differs"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its facts and its arrays, named as prove_run names them."""

    facts: RunFacts
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first token of a prompt's answer that differs. regret: how much less likely, in nats by
    the first device, the other token is; is_bound: at least that much, it is beyond the top K.
    margin: between the first device's two most likely tokens."""

    prompt: int
    token: int
    expected: int
    actual: int
    regret: float
    is_bound: bool
    margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDifference:
    """The relative L2 distance of one site's outputs in the worst of the traced texts; infinite
    where one device has a NaN (null in JSON)."""

    site: str
    error: float
    limit: float

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "error": self.error if math.isfinite(self.error) else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One device against the first. `first_site` is the first beyond its limit, in the order of
    execution; `worst_site` is the one with the largest share of its limit."""

    spec: str
    verdict: Verdict
    num_equal: int
    num_tokens: int
    divergences: tuple[Divergence, ...]
    first_site: SiteDifference | None
    worst_site: SiteDifference | None
    reason: str = ""

    def as_json(self) -> dict[str, object]:
        first, worst = self.first_site, self.worst_site
        return {
            **asdict(self),
            "first_site": None if first is None else first.as_json(),
            "worst_site": None if worst is None else worst.as_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Everything that `hal-info prove` prints."""

    model: str
    prompts: tuple[tuple[int, ...], ...]
    runs: tuple[RunFacts, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def has_failed(self) -> bool:
        return any(c.verdict in (Verdict.DIFFER, Verdict.FAILED) for c in self.comparisons)

    def as_json(self) -> dict[str, object]:
        return {
            "schema": SCHEMA_VERSION,
            "model": self.model,
            "prompts": [list(prompt) for prompt in self.prompts],
            "runs": [asdict(run) for run in self.runs],
            "comparisons": [comparison.as_json() for comparison in self.comparisons],
        }


def compare(reference: Run, other: Run) -> Comparison:
    """`other` against `reference`; both answered the same prompts."""
    pairs = list(zip(reference.facts.answers, other.facts.answers, strict=True))
    divergences = tuple(
        divergence
        for prompt, (expected, actual) in enumerate(pairs)
        if (divergence := _divergence(reference, prompt, expected, actual)) is not None
    )
    first_site, worst_site = _sites(reference, other)
    return Comparison(
        spec=other.facts.spec,
        verdict=_verdict(reference, other, divergences, first_site),
        num_equal=sum(_num_equal(expected, actual) for expected, actual in pairs),
        num_tokens=sum(len(expected) for expected, _ in pairs),
        divergences=divergences,
        first_site=first_site,
        worst_site=worst_site,
    )


def failed(spec: str, reason: str) -> Comparison:
    """A device whose run did not end."""
    return Comparison(
        spec=spec,
        verdict=Verdict.FAILED,
        num_equal=0,
        num_tokens=0,
        divergences=(),
        first_site=None,
        worst_site=None,
        reason=reason,
    )


def _verdict(
    reference: Run,
    other: Run,
    divergences: Sequence[Divergence],
    first_site: SiteDifference | None,
) -> Verdict:
    limit = max(TIE_LIMITS[dtype] for dtype in _dtypes(reference, other))
    if first_site is not None or any(d.regret > limit for d in divergences):
        return Verdict.DIFFER
    return Verdict.TIE if divergences else Verdict.AGREE


def _num_equal(expected: Sequence[int], actual: Sequence[int]) -> int:
    """Tokens before the first that differs: what follows it answers another text."""
    for index, (a, b) in enumerate(zip(expected, actual, strict=False)):
        if a != b:
            return index
    return min(len(expected), len(actual))


def _divergence(
    reference: Run, prompt: int, expected: Sequence[int], actual: Sequence[int]
) -> Divergence | None:
    token = _num_equal(expected, actual)
    if token == len(expected) == len(actual):
        return None
    ids = reference.arrays[f"top_ids/{prompt}"][token]
    logprobs = reference.arrays[f"top_logprobs/{prompt}"][token]
    found = np.flatnonzero(ids == actual[token])
    likelihood = logprobs[found[0]] if len(found) else logprobs[-1]
    return Divergence(
        prompt=prompt,
        token=token,
        expected=expected[token],
        actual=actual[token],
        regret=float(logprobs[0] - likelihood),
        is_bound=not len(found),
        margin=float(logprobs[0] - logprobs[1]) if len(logprobs) > 1 else 0.0,
    )


def _sites(reference: Run, other: Run) -> tuple[SiteDifference | None, SiteDifference | None]:
    """The first site beyond its limit and the worst one."""
    differences = [
        SiteDifference(site=site, error=error, limit=_site_limit(reference, other, index))
        for index, (site, error) in enumerate(_site_errors(reference, other).items())
    ]
    first = next((d for d in differences if not d.error <= d.limit), None)
    return first, max(differences, key=lambda d: d.error / d.limit, default=None)


def _site_errors(reference: Run, other: Run) -> dict[str, float]:
    """Site -> worst error over the texts, in the order of execution."""
    errors: dict[str, float] = {}
    for name, expected in reference.arrays.items():
        if not name.startswith("trace/"):
            continue
        site = name.split("/", 2)[2]
        error = _distance(other.arrays[name], expected)
        errors[site] = max(error, errors.get(site, 0.0))
    return errors


def _distance(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Relative L2 over all positions together: one position's sum may cancel to nearly nothing,
    and then says nothing about the device."""
    return relative_l2(
        actual.astype(np.float64).reshape(1, -1), expected.astype(np.float64).reshape(1, -1)
    )


def _site_limit(reference: Run, other: Run, index: int) -> float:
    """Both sides may each be one op's limit off at every site so far; independent roundings add
    like their squares, so the limit grows with the root of the number of sites."""
    limit = max(LIMITS[dtype] for dtype in _dtypes(reference, other))
    return float(limit * np.sqrt(2.0 * (index + 1)))


def _dtypes(reference: Run, other: Run) -> tuple[DType, DType]:
    return parse_dtype(reference.facts.dtype), parse_dtype(other.facts.dtype)
