"""From the records of one load to its figures: percentiles, rates, goodput, the generator's own.

TTFT: until the first text. TPOT: seconds per token after the first, one value per request. ITL:
every gap between two pieces of text. E2EL: until the end. All but ITL are counted from the moment
a request was due, as vLLM's benchmark counts from the moment it was sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hal.cli.bench.load.runner import Point
from hal.cli.bench.load.stream import Record
from hal.errors import ConfigError

GOODPUT_NAMES = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """What the generator itself took, and how late it was: its share of what was measured.

    late_ms: sends after they were due and possible; lag_ms: timers of its event loop
    cpu_share: of one core; us_per_piece: CPU microseconds for each piece of text, all included
    """

    late_ms: Spread | None
    lag_ms: Spread | None
    cpu_share: float
    us_per_piece: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One row of the result. Rates are per second of the whole load, first due to last end."""

    name: str
    num_completed: int
    num_failed: int
    num_unfinished: int
    failures: Mapping[str, int]
    seconds: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    tokens_counted_by: str
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2el_ms: Spread | None
    goodput_per_s: float | None
    goodput_share: float | None
    generator: Generator


def spread(seconds: Sequence[float] | NDArray[np.float64]) -> Spread | None:
    """None for no values."""
    if not len(seconds):
        return None
    values = np.asarray(seconds) * 1000
    p50, p90, p95, p99 = (float(p) for p in np.percentile(values, (50, 90, 95, 99)))
    return Spread(
        count=len(values),
        mean=float(values.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
    )


def parse_goodput(texts: Sequence[str]) -> dict[str, float]:
    """ "ttft:200" means 200 ms; raises ConfigError."""
    limits = {}
    for text in texts:
        name, _, number = text.partition(":")
        try:
            limit = float(number)
        except ValueError:
            limit = 0.0
        if name not in GOODPUT_NAMES or not 0 < limit < float("inf"):
            raise ConfigError(
                f"--goodput {text!r} is not one of {', '.join(GOODPUT_NAMES)} with milliseconds, "
                "as in ttft:200"
            )
        limits[name] = limit
    return limits


def figures(point: Point, goodput: Mapping[str, float]) -> Figures:
    """The goodput limits are milliseconds; without any there is no goodput."""
    done = [record for record in point.records if not record.error]
    failed = [record for record in point.records if record.error]
    seconds = _seconds(point)
    num_input = sum(record.prompt_tokens or 0 for record in done)
    num_output = sum(record.output_tokens for record in done)
    num_good = sum(_is_good(record, goodput) for record in done)
    gaps = np.concatenate([np.frombuffer(r.gaps) for r in done if r.gaps] or [np.empty(0)])
    return Figures(
        name=point.load.name,
        num_completed=len(done),
        num_failed=len(failed),
        num_unfinished=point.num_unfinished,
        failures=dict(Counter(record.error for record in failed).most_common()),
        seconds=seconds,
        requests_per_s=len(done) / seconds,
        input_tokens_per_s=num_input / seconds,
        output_tokens_per_s=num_output / seconds,
        input_tokens=num_input,
        output_tokens=num_output,
        cached_tokens=sum(record.cached_tokens for record in done),
        tokens_counted_by="server" if all(r.is_counted for r in done) else "pieces of text",
        ttft_ms=spread([r.ttft_s for r in done if r.ttft_s is not None]),
        tpot_ms=spread([r.tpot_s for r in done if r.tpot_s is not None]),
        itl_ms=spread(gaps),
        e2el_ms=spread([r.e2el_s for r in done]),
        goodput_per_s=num_good / seconds if goodput else None,
        goodput_share=num_good / max(len(point.records), 1) if goodput else None,
        generator=_generator(point),
    )


def _seconds(point: Point) -> float:
    """To the last end, or of the whole run where it was stopped."""
    ends = [record.ended_s for record in point.records]
    if point.num_unfinished or not ends:
        return max(point.seconds, 1e-9)
    return max(max(ends) - point.started_s, 1e-9)


def _is_good(record: Record, limits: Mapping[str, float]) -> bool:
    values = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.e2el_s}
    return all((values[name] or 0.0) * 1000 <= limit for name, limit in limits.items())


def _generator(point: Point) -> Generator:
    num_pieces = sum(record.num_pieces for record in point.records)
    return Generator(
        late_ms=spread([max(0.0, r.sent_s - r.possible_s) for r in point.records]),
        lag_ms=spread(point.lag_s),
        cpu_share=point.cpu_s / max(point.seconds, 1e-9),
        us_per_piece=1e6 * point.cpu_s / max(num_pieces, 1),
    )
