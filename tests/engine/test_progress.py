"""A terminal gets a bar, a log gets a line now and then; both end with totals and rate."""

from __future__ import annotations

import io

import pytest

from hal.engine.progress import StreamProgress, Unit

MIB = 2**20


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_terminal_shows_bytes_rate_and_time_left() -> None:
    stream, clock = _Terminal(), _Clock()
    progress = StreamProgress(stream, "loading", Unit.BYTES, clock)
    progress.start(400 * MIB)
    clock.now += 2.0
    progress.advance(100 * MIB)
    shown = stream.getvalue()

    assert "[######.................." in shown
    assert " 25%  100.0 MiB of 400.0 MiB  50.0 MiB/s  6 s left" in shown
    assert "\n" not in shown


def test_log_gets_whole_lines_and_not_too_many() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = StreamProgress(stream, "loading", Unit.BYTES, clock)
    progress.start(100 * MIB)
    for _ in range(100):
        clock.now += 0.1
        progress.advance(MIB)
    progress.finish()

    lines = stream.getvalue().splitlines()
    assert len(lines) in (2, 3)
    assert all("\r" not in line and "[" not in line for line in lines)
    assert lines[-1] == "loading: 100.0 MiB in 10.0 s (10.0 MiB/s)"


def test_requests_are_counted_as_such() -> None:
    stream, clock = io.StringIO(), _Clock()
    progress = StreamProgress(stream, "prompts", Unit.REQUESTS, clock)
    progress.start(8)
    clock.now += 200.0
    progress.advance(2)

    assert stream.getvalue() == (
        "prompts:  25%  2 requests of 8 requests  0.0 requests/s  10 min 00 s left\n"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_an_empty_instant_job(terminal: bool) -> None:
    stream = _Terminal() if terminal else io.StringIO()
    progress = StreamProgress(stream, "loading", Unit.BYTES, _Clock())
    progress.start(0)
    progress.finish()

    assert stream.getvalue().endswith("loading: 0.0 MiB in 0.0 s (instantly)\n")
