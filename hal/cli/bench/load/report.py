"""The result as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hal.cli.bench.load.figures import Figures, Spread
from hal.errors import ConfigError

LATE_MS = 10.0
"""At the 99th percentile: above, the generator and not the server may be what was measured."""
BUSY_SHARE = 0.9
_METRICS = (
    ("TTFT", "ttft_ms"),
    ("TPOT", "tpot_ms"),
    ("ITL", "itl_ms"),
    ("E2EL", "e2el_ms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All loads of one call. settings: what was asked, by flag; notes: what a reader must know."""

    url: str
    model: str
    started_at: str
    settings: Mapping[str, object]
    goodput: Mapping[str, float]
    notes: Sequence[str]
    points: Sequence[Figures]

    def as_json(self) -> str:
        return json.dumps({"version": 1, **asdict(self)}, indent=1)


def table(report: Report) -> str:
    lines = [f"{report.model} at {report.url}, {report.started_at}"]
    for point in report.points:
        lines += ["", *_point(point, report.goodput)]
    lines += [f"note: {note}" for note in [*report.notes, *warnings(report.points)]]
    return "\n".join(lines)


def _point(point: Figures, goodput: Mapping[str, float]) -> Iterator[str]:
    counts = f"{point.num_completed} completed, {point.num_failed} failed"
    if point.num_unfinished:
        counts += f", {point.num_unfinished} unfinished"
    yield f"{point.name}: {counts} in {point.seconds:.2f} s"
    yield (
        f"  {point.requests_per_s:.2f} requests/s   {point.input_tokens_per_s:.1f} prompt tok/s   "
        f"{point.output_tokens_per_s:.1f} output tok/s"
    )
    if point.goodput_per_s is not None and point.goodput_share is not None:
        limits = ", ".join(f"{name} <= {limit:g} ms" for name, limit in goodput.items())
        yield (
            f"  goodput {point.goodput_per_s:.2f} requests/s, {point.goodput_share:.1%} ({limits})"
        )
    if point.num_completed:
        yield f"  {'ms':6}" + "".join(
            f"{n:>10}" for n in ("mean", "p50", "p90", "p95", "p99", "max")
        )
        yield from (_row(label, getattr(point, name)) for label, name in _METRICS)
    for reason, count in point.failures.items():
        yield f"  failed {count}x: {reason}"
    yield _generator(point)


def _row(label: str, values: Spread | None) -> str:
    if values is None:
        return f"  {label:6}{'-':>10}"
    shown = (values.mean, values.p50, values.p90, values.p95, values.p99, values.max)
    return f"  {label:6}" + "".join(f"{value:10.2f}" for value in shown)


def _generator(point: Figures) -> str:
    own = point.generator
    late = "" if own.late_ms is None else f"sends late p99 {own.late_ms.p99:.2f} ms, "
    lag = "" if own.lag_ms is None else f"timers late p99 {own.lag_ms.p99:.2f} ms, "
    return (
        f"  generator: {late}{lag}{own.cpu_share:.0%} of a core, "
        f"{own.us_per_piece:.0f} us per piece of text"
    )


def warnings(points: Sequence[Figures]) -> Iterator[str]:
    """Where the generator was too slow for what it measured."""
    for point in points:
        own = point.generator
        late_ms = max(s.p99 for s in (own.late_ms, own.lag_ms, _NOTHING) if s is not None)
        if late_ms > LATE_MS:
            yield (
                f"{point.name}: the generator was {late_ms:.1f} ms late (p99); latencies contain "
                "that. Lower the load or give it a core of its own"
            )
        if own.cpu_share > BUSY_SHARE:
            yield (
                f"{point.name}: the generator used {own.cpu_share:.0%} of a core: the server may "
                "be faster than this"
            )


_NOTHING = Spread(count=0, mean=0.0, p50=0.0, p90=0.0, p95=0.0, p99=0.0, max=0.0)


def write_file(path: str, text: str) -> None:
    """Raises ConfigError."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
