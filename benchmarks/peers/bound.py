"""The seconds that a case takes on this machine at least, if an engine did nothing but multiply.

Counts the products of the weight matrices. Attention, norms and sampling come on top, so an engine
that reached 100 % would do those in no time at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peers.cases import CASES, Case, Kind
from peers.checkpoint import Geometry
from peers.machine import Ceilings
from peers.report import Row


@dataclass(frozen=True, slots=True)
class Peak:
    """Operations a second that this machine's matrix instructions were measured at."""

    name: str
    ops_per_s: float


def operations(case: Case, geometry: Geometry) -> int:
    """Two for each multiply-add: layers for every token that is run, logits for every new token.

    The last token of a request is made and never run.
    """
    run = sum(length.prompt + length.output - 1 for length in case.lengths)
    made = sum(length.output for length in case.lengths)
    return 2 * (run * geometry.layer_values + made * geometry.embedding_values)


def best(ceilings: Sequence[Ceilings]) -> Ceilings:
    """The largest of each: a bound is what the machine can do."""

    def largest(values: Sequence[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return Ceilings(
        read_gb_s=largest([c.read_gb_s for c in ceilings]),
        vnni_tops=largest([c.vnni_tops for c in ceilings]),
        bf16_tflops=largest([c.bf16_tflops for c in ceilings]),
    )


def peak_of(weights: str, ceilings: Ceilings) -> Peak | None:
    """Of what multiplies these weights: floats where weights or activations stay floats."""
    is_float = weights in ("bf16", "fp8") or weights.endswith("-a16")
    name, value = ("BF16", ceilings.bf16_tflops) if is_float else ("VNNI", ceilings.vnni_tops)
    return None if value is None else Peak(name, value * 1e12)


def with_bounds(rows: Sequence[Row], geometry: Geometry, ceilings: Ceilings) -> list[Row]:
    """Rows of prefill and mixed cases with their bounds; decoding is bound by reading."""
    return [_with_bound(row, geometry, ceilings) for row in rows]


def _with_bound(row: Row, geometry: Geometry, ceilings: Ceilings) -> Row:
    case, peak = CASES[row.case], peak_of(row.weights, ceilings)
    if case.kind is Kind.DECODE or peak is None or row.seconds is None:
        return row
    seconds = operations(case, geometry) / peak.ops_per_s
    share = seconds / row.seconds.median
    return replace(row, bound_peak=peak.name, bound_s=seconds, bound_share=share)
