"""Circuit breaker: while most requests fail in the engine, none are let in to wait for that.

Closed, it lets all pass. Open, it refuses for a while that doubles with each failed probe. Then it
is half-open: one request is let in, and how that ends decides.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from hal.server.errors import circuit_open

_WINDOW_S = 30.0
_NUM_REMEMBERED = 20
_LEAST_ENDS = 10
_MOST_FAILED = 0.5
_FIRST_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0

_log = logging.getLogger("hal.server")


class Circuit(IntEnum):
    """The number is what /metrics shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Told of every start and end. One event loop, no locks."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: deque[tuple[float, bool]] = deque(maxlen=_NUM_REMEMBERED)
        self._pause_s = _FIRST_PAUSE_S
        self._opened_at: float | None = None
        self._probe: str | None = None

    @property
    def state(self) -> Circuit:
        if self._opened_at is None:
            return Circuit.CLOSED
        return Circuit.OPEN if self._left_s() > 0 else Circuit.HALF_OPEN

    def check(self) -> None:
        """Raises ApiError 503 unless a request may start."""
        state = self.state
        if state is Circuit.OPEN or (state is Circuit.HALF_OPEN and self._probe is not None):
            raise circuit_open(self._num_failed(), len(self._ends), max(self._left_s(), 1.0))

    def start(self, request_id: str) -> None:
        if self.state is Circuit.HALF_OPEN:
            self._probe = request_id

    def end(self, request_id: str, *, is_failed: bool) -> None:
        """The engine has ended it, or a choice of it, for good or by a failure of its own."""
        now = self._clock()
        self._ends.append((now, is_failed))
        if request_id == self._probe:
            self._decide(is_failed)
        elif self._opened_at is None and self._is_failing(now):
            self._open()

    def leave(self, request_id: str) -> None:
        """It is gone without an end: a probe that tells nothing makes room for another."""
        if request_id == self._probe:
            self._probe = None

    def _decide(self, is_failed: bool) -> None:
        self._probe = None
        if is_failed:
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._open()
            return
        self._opened_at, self._pause_s = None, _FIRST_PAUSE_S
        self._ends.clear()
        _log.warning("circuit closed: a request came through, all are let in again")

    def _open(self) -> None:
        self._opened_at = self._clock()
        _log.error(
            "circuit open for %g s: %d of the last %d requests failed in the engine",
            self._pause_s,
            self._num_failed(),
            len(self._ends),
        )

    def _is_failing(self, now: float) -> bool:
        while self._ends and self._ends[0][0] < now - _WINDOW_S:
            self._ends.popleft()
        enough = len(self._ends) >= _LEAST_ENDS
        return enough and self._num_failed() > _MOST_FAILED * len(self._ends)

    def _num_failed(self) -> int:
        return sum(is_failed for _, is_failed in self._ends)

    def _left_s(self) -> float:
        assert self._opened_at is not None
        return self._opened_at + self._pause_s - self._clock()
