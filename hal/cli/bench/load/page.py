"""The result as one HTML file that needs nothing else: tables, and charts of every load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np

from hal.cli.bench.load.chart import Series, chart
from hal.cli.bench.load.figures import Figures, Spread
from hal.cli.bench.load.report import Report, warnings
from hal.cli.bench.load.runner import Point
from hal.cli.bench.load.stream import Record

_COLORS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#475569")
_NUM_BINS = 60
_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:14px/1.4 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}"
    "th,td{padding:.2em .7em;text-align:right;border-bottom:1px solid #8884}"
    "th:first-child,td:first-child{text-align:left}"
    ".charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:1em}"
    "figure{margin:0}svg{width:100%;height:auto}svg text{font-size:10px;fill:currentColor}"
    "line{stroke:#8884}polyline{fill:none;stroke-width:1.6}.dots{fill-opacity:.55}"
    + "".join(
        f".c{i}{{color:{color}}}.s{i}{{stroke:{color}}}.f{i}{{fill:{color}}}"
        for i, color in enumerate(_COLORS)
    )
)


def page(report: Report, points: Sequence[Point]) -> str:
    """HTML; the points are those that the report's figures are made of, in the same order."""
    parts = [
        f"<h1>{escape(report.model)}</h1>",
        f"<p>{escape(report.url)}, {escape(report.started_at)}</p>",
        _rates(report),
        *(_latencies(figures) for figures in report.points),
        *(f"<p>Note: {escape(note)}</p>" for note in [*report.notes, *warnings(report.points)]),
        *_sweep(report.points),
        *(_load(point) for point in points),
        _settings(report),
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>hal-bench serve</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _rates(report: Report) -> str:
    head = ["load", "completed", "failed", "seconds", "requests/s", "prompt tok/s", "output tok/s"]
    rows: list[list[object]] = [
        [
            f.name,
            f.num_completed,
            f.num_failed,
            *(f"{value:.2f}" for value in (f.seconds, f.requests_per_s)),
            *(f"{value:.1f}" for value in (f.input_tokens_per_s, f.output_tokens_per_s)),
        ]
        for f in report.points
    ]
    if report.goodput:
        limits = ", ".join(f"{name} ≤ {limit:g} ms" for name, limit in report.goodput.items())
        head.append(f"goodput/s ({limits})")
        for row, point in zip(rows, report.points, strict=True):
            row.append(f"{point.goodput_per_s or 0:.2f} ({point.goodput_share or 0:.0%})")
    return _table(head, rows)


def _latencies(figures: Figures) -> str:
    named = (
        ("TTFT", figures.ttft_ms),
        ("TPOT", figures.tpot_ms),
        ("ITL", figures.itl_ms),
        ("E2EL", figures.e2el_ms),
    )
    rows = [[name, *_numbers(spread)] for name, spread in named if spread is not None]
    failed = "".join(
        f"<p>Failed {count} times: {escape(why)}</p>" for why, count in figures.failures.items()
    )
    return _table([f"{figures.name}, ms", "mean", "p50", "p90", "p95", "p99", "max"], rows) + failed


def _numbers(s: Spread) -> list[str]:
    return [f"{value:.2f}" for value in (s.mean, s.p50, s.p90, s.p95, s.p99, s.max)]


def _sweep(points: Sequence[Figures]) -> Iterator[str]:
    """Latency against throughput, where there are several loads."""
    done = [p for p in points if p.ttft_ms is not None and p.e2el_ms is not None]
    if len(done) < 2:
        return
    rates = [p.output_tokens_per_s for p in done]
    series = [
        Series("p50", rates, [p.ttft_ms.p50 for p in done if p.ttft_ms], 0),
        Series("p99", rates, [p.ttft_ms.p99 for p in done if p.ttft_ms], 1),
    ]
    yield "<h2>All loads</h2><div class=charts>"
    yield chart("Time to first token against throughput", "output tok/s", "ms", series)
    tpot = [p for p in done if p.tpot_ms is not None]
    rates = [p.output_tokens_per_s for p in tpot]
    series = [
        Series("p50", rates, [p.tpot_ms.p50 for p in tpot if p.tpot_ms], 0),
        Series("p99", rates, [p.tpot_ms.p99 for p in tpot if p.tpot_ms], 1),
    ]
    yield chart("Time per output token against throughput", "output tok/s", "ms", series)
    yield "</div>"


def _load(point: Point) -> str:
    done = sorted((r for r in point.records if not r.error), key=lambda r: r.due_s)
    if not done:
        return ""
    ttft = [(r.due_s - point.started_s, r.ttft_s * 1000) for r in done if r.ttft_s is not None]
    e2el = [(r.due_s - point.started_s, r.e2el_s * 1000) for r in done]
    first = [
        _cumulative("TTFT", [y for _, y in ttft], 0),
        _cumulative("E2EL", [y for _, y in e2el], 1),
    ]
    tpot = [r.tpot_s * 1000 for r in done if r.tpot_s is not None]
    gaps = [gap * 1000 for r in done for gap in r.gaps]
    charts = [
        chart("Requests that were faster: TTFT, E2EL", "ms", "%", first),
        chart(
            "Requests and gaps that were faster: TPOT, ITL",
            "ms",
            "%",
            [_cumulative("TPOT", tpot, 2), _cumulative("ITL", gaps, 4)],
        ),
        chart(
            "Time to first token of each request",
            "seconds when it was due",
            "ms",
            [Series("TTFT", [x for x, _ in ttft], [y for _, y in ttft], 0, dots=True)],
        ),
        chart("Throughput", "seconds", "pieces of text per second", [_throughput(point, done)]),
    ]
    return f"<h2>{escape(point.load.name)}</h2><div class=charts>{''.join(charts)}</div>"


def _cumulative(name: str, values: Sequence[float], color: int) -> Series:
    """Share of values below each, up to the 99th percentile: the rest would flatten the picture."""
    if not values:
        return Series(name, [], [])
    shares = np.linspace(0, 99, 100)
    return Series(name, np.percentile(values, shares).tolist(), shares.tolist(), color)


def _throughput(point: Point, done: Sequence[Record]) -> Series:
    times = np.concatenate([_piece_times(record) for record in done]) - point.started_s
    if not len(times):
        return Series("", [], [])
    counts, edges = np.histogram(times, bins=_NUM_BINS)
    width = edges[1] - edges[0]
    middles = (edges[:-1] + edges[1:]) / 2
    return Series("all requests", middles.tolist(), (counts / width).tolist(), 2)


def _piece_times(record: Record) -> np.ndarray:
    if record.first_s is None:
        return np.empty(0)
    return record.first_s + np.cumsum([0.0, *record.gaps])


def _settings(report: Report) -> str:
    rows = [[name, value] for name, value in report.settings.items()]
    return "<details><summary>Settings</summary>" + _table(["flag", "value"], rows) + "</details>"
