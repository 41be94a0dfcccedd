"""Progress of long jobs: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, TextIO

Clock = Callable[[], float]

_BAR_WIDTH = 24
_BAR_INTERVAL_S = 0.1
_LINE_INTERVAL_S = 5.0


class Unit(StrEnum):
    """What is counted."""

    BYTES = "bytes"
    REQUESTS = "requests"


class Progress(Protocol):
    """One job: start once, advance often, finish once."""

    def start(self, total: int) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...


class SilentProgress:
    """Shows nothing."""

    def start(self, total: int) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def finish(self) -> None:
        pass


class StreamProgress:
    """Writes amount, share, rate and time left; redraws one line on a terminal."""

    def __init__(
        self, stream: TextIO, label: str, unit: Unit, clock: Clock = time.monotonic
    ) -> None:
        self._stream = stream
        self._label = label
        self._unit = unit
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._interval_s = _BAR_INTERVAL_S if self._is_terminal else _LINE_INTERVAL_S
        self._total = 0
        self._done = 0
        self._started_at = 0.0
        self._shown_at = 0.0

    def start(self, total: int) -> None:
        self._total, self._done = total, 0
        self._started_at = self._shown_at = self._clock()

    def advance(self, amount: int) -> None:
        self._done += amount
        now = self._clock()
        if now - self._shown_at >= self._interval_s:
            self._shown_at = now
            self._show(self._state(now), is_last=False)

    def finish(self) -> None:
        elapsed_s = self._clock() - self._started_at
        amount = _amount(self._done, self._unit)
        rate = _rate(self._done, elapsed_s, self._unit)
        self._show(f"{self._label}: {amount} in {elapsed_s:.1f} s ({rate})", is_last=True)

    def _state(self, now: float) -> str:
        elapsed_s = now - self._started_at
        share = self._done / self._total if self._total else 1.0
        left_s = elapsed_s * (1 - share) / share if share else 0.0
        filled = round(_BAR_WIDTH * min(share, 1.0))
        bar = f" [{'#' * filled}{'.' * (_BAR_WIDTH - filled)}]" if self._is_terminal else ""
        amount = f"{_amount(self._done, self._unit)} of {_amount(self._total, self._unit)}"
        rate = _rate(self._done, elapsed_s, self._unit)
        return f"{self._label}:{bar} {share:4.0%}  {amount}  {rate}  {_duration(left_s)} left"

    def _show(self, text: str, *, is_last: bool) -> None:
        # \x1b[K clears what a longer earlier line left behind.
        before = "\r\x1b[K" if self._is_terminal else ""
        after = "\n" if is_last or not self._is_terminal else ""
        self._stream.write(f"{before}{text}{after}")
        self._stream.flush()


def _amount(count: int, unit: Unit) -> str:
    if unit is Unit.REQUESTS:
        return f"{count} requests"
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.1f} MiB"


def _rate(count: int, elapsed_s: float, unit: Unit) -> str:
    if elapsed_s <= 0:
        return "instantly"
    if unit is Unit.REQUESTS:
        return f"{count / elapsed_s:.1f} requests/s"
    return f"{_amount(int(count / elapsed_s), unit)}/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
