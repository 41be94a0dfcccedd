"""A page that shows what each step ran: a lane per sequence, the KV pool above."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hal.cli.bench.trace_file import Line, Lines
from hal.errors import ConfigError

WIDTH, POOL_HEIGHT, LANE_HEIGHT, LEFT = 1200, 120, 8, 160
MAX_LANES = 400
PREFILL, DECODE, FAILED, PREEMPTED = "#d97706", "#2563eb", "#dc2626", "#7c3aed"
USED, CACHED = "#2563eb", "#cbd5e1"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a trace; ran: tokens by sequence ("request choice")."""

    start_s: float
    seconds: float
    ran: dict[str, int]
    used: float
    cached: float
    num_preempted: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Bar:
    """Steps in a row of one kind."""

    lane: int
    start_s: float
    end_s: float
    color: str


def write_timeline(lines: Lines, target: str) -> int:
    """Draw a trace; returns the number of its steps."""
    steps = read_steps(lines)
    try:
        Path(target).write_text(page(steps), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from error
    return len(steps)


def read_steps(lines: Lines) -> list[Step]:
    """Raises ConfigError for a line that --trace did not write."""
    steps, before = [], 0
    for line in lines:
        so_far = int(line.number_of("num_preemptions"))
        steps.append(_step(line, so_far - before))
        before = so_far
    return steps


def _step(line: Line, num_preempted: int) -> Step:
    blocks, ran = line.fields.get("blocks"), line.fields.get("ran")
    if not isinstance(blocks, dict) or not isinstance(ran, list):
        raise line.wrong("has no blocks or no ran: is it what --trace wrote?")
    pool = Line(line.file, line.number, blocks)
    total = max(pool.number_of("total"), 1)
    return Step(
        start_s=line.number_of("start_s"),
        seconds=line.number_of("seconds", 0.0),
        ran={f"{request} {index}": int(tokens) for request, index, tokens in ran},
        used=pool.number_of("used") / total,
        cached=pool.number_of("cached") / total,
        num_preempted=num_preempted,
        failed=bool(line.fields.get("failed")),
    )


def page(steps: list[Step]) -> str:
    """HTML with one picture, readable without any other file."""
    lanes = list(dict.fromkeys(name for step in steps for name in step.ran))
    shown = lanes[:MAX_LANES]
    end_s = max(step.start_s + step.seconds for step in steps) or 1.0
    scale = WIDTH / end_s
    height = POOL_HEIGHT + 20 + LANE_HEIGHT * len(shown)
    note = f"{len(steps)} steps, {end_s:.3g} s, {len(lanes)} sequences"
    if len(lanes) > len(shown):
        note += f", the first {len(shown)} shown"
    legend = " &middot; ".join(
        f'<b style="color:{color}">{name}</b>'
        for name, color in (
            ("prefill", PREFILL),
            ("decode, used blocks", DECODE),
            ("cached blocks", "#94a3b8"),
            ("preemption", PREEMPTED),
            ("lost step", FAILED),
        )
    )
    shapes = "\n".join([*_pool(steps, scale), *_lanes(steps, shown, scale), *_marks(steps, scale)])
    return (
        f'<!doctype html><meta charset="utf-8"><title>hal timeline</title>'
        f'<body style="font:12px sans-serif"><p>{note}<p>{legend}<p>'
        f'<svg width="{LEFT + WIDTH}" height="{height}" font-size="8">\n{shapes}\n</svg>\n'
    )


def _rect(x: float, y: float, width: float, height: float, color: str) -> str:
    return (
        f'<rect x="{LEFT + x:.2f}" y="{y:.1f}" width="{max(width, 0.2):.2f}" '
        f'height="{height:.1f}" fill="{color}"/>'
    )


def _pool(steps: list[Step], scale: float) -> Iterator[str]:
    """Used blocks from below, cached ones on top of them."""
    for step in steps:
        x, width = step.start_s * scale, step.seconds * scale
        used, cached = step.used * POOL_HEIGHT, step.cached * POOL_HEIGHT
        yield _rect(x, POOL_HEIGHT - used, width, used, USED)
        yield _rect(x, POOL_HEIGHT - used - cached, width, cached, CACHED)


def _lanes(steps: list[Step], shown: list[str], scale: float) -> Iterator[str]:
    for bar in bars(steps, shown):
        y = POOL_HEIGHT + 20 + bar.lane * LANE_HEIGHT
        width = (bar.end_s - bar.start_s) * scale
        yield _rect(bar.start_s * scale, y, width, LANE_HEIGHT - 1, bar.color)
    for lane, name in enumerate(shown):
        y = POOL_HEIGHT + 27 + lane * LANE_HEIGHT
        yield f'<text x="0" y="{y}">{escape(name[:36])}</text>'


def bars(steps: list[Step], shown: list[str]) -> Iterator[Bar]:
    """Who ran when; steps of one kind that follow each other are one bar."""
    lane_of = {name: lane for lane, name in enumerate(shown)}
    growing: dict[int, Bar] = {}
    for step in steps:
        running: dict[int, Bar] = {}
        for name, num_tokens in step.ran.items():
            lane = lane_of.get(name)
            if lane is None:
                continue
            color = FAILED if step.failed else PREFILL if num_tokens > 1 else DECODE
            before = growing.pop(lane, None)
            end_s = step.start_s + step.seconds
            if before is not None and before.color == color:
                running[lane] = Bar(lane, before.start_s, end_s, color)
                continue
            if before is not None:
                yield before
            running[lane] = Bar(lane, step.start_s, end_s, color)
        yield from growing.values()
        growing = running
    yield from growing.values()


def _marks(steps: list[Step], scale: float) -> Iterator[str]:
    for step in steps:
        if step.num_preempted > 0:
            yield _rect(step.start_s * scale, 0, 1, POOL_HEIGHT + 20, PREEMPTED)
        if step.failed:
            yield _rect(step.start_s * scale, POOL_HEIGHT, 2, 20, FAILED)
