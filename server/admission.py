"""Who may still queue: a bound on requests and on prompt tokens that have not begun to be served.

A request counts as waiting until its first token. How fast the queue moves is measured while there
is one, and tells how long a refused client should stay away and who cannot be served in time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from hal.server.errors import ApiError, jittered_s, overloaded, too_late
from hal.server.queue_limits import QueueLimits

_NUM_MEASURED = 64
_LEAST_MEASURED = 8
_MOST_RETRY_S = 60.0


class Admission:
    """Counts what waits. One event loop, no locks."""

    def __init__(
        self, limits: QueueLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits or QueueLimits()
        self._clock = clock
        self._waiting: dict[str, int] = {}
        self._num_tokens = 0
        self._started: deque[tuple[float, int]] = deque(maxlen=_NUM_MEASURED)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        return self._num_tokens

    @property
    def fill(self) -> float:
        """The fuller of both limits, 0 to 1; one long prompt alone is not a queue."""
        if len(self._waiting) < 2:
            return len(self._waiting) / self._limits.max_requests
        limits = self._limits
        return max(len(self._waiting) / limits.max_requests, self._num_tokens / limits.max_tokens)

    def check(self, num_tokens: int, timeout_s: float | None) -> None:
        """Raises ApiError 503 where the queue is full, 504 where it moves too slowly for that."""
        if not self._waiting:
            return
        limits, wait_s = self._limits, self.expected_wait_s()
        if len(self._waiting) >= limits.max_requests:
            what = f"{len(self._waiting)} requests are waiting (--max-queue-size)"
        elif self._num_tokens + num_tokens > limits.max_tokens:
            what = (
                f"{self._num_tokens} prompt tokens are waiting and this has {num_tokens}; "
                f"the limit is {limits.max_tokens} (--max-queued-tokens)"
            )
        elif timeout_s is not None and wait_s is not None and wait_s > timeout_s:
            raise too_late(wait_s, timeout_s)
        else:
            return
        raise self.overloaded(what)

    def enter(self, request_id: str, num_tokens: int) -> None:
        if not self._waiting:
            # An empty queue says nothing about how fast a full one moves.
            self._started.clear()
            self._started.append((self._clock(), 0))
        self._waiting[request_id] = num_tokens
        self._num_tokens += num_tokens

    def start(self, request_id: str) -> None:
        """Its first token is there."""
        num_tokens = self.leave(request_id)
        if num_tokens is not None:
            self._started.append((self._clock(), num_tokens))

    def leave(self, request_id: str) -> int | None:
        """It waits no more, for whatever reason; its prompt tokens if it did."""
        num_tokens = self._waiting.pop(request_id, None)
        self._num_tokens -= num_tokens or 0
        return num_tokens

    def expected_wait_s(self) -> float | None:
        """Until all that wait now have begun; None before enough was seen."""
        if len(self._started) <= _LEAST_MEASURED:
            return None
        # The first of them is where the measured time begins: its tokens were served before.
        num_tokens = sum(count for _, count in self._started) - self._started[0][1]
        seconds = self._clock() - self._started[0][0]
        return self._num_tokens * seconds / num_tokens if num_tokens else None

    def overloaded(self, what: str) -> ApiError:
        """Half the queue's time, so that clients come back to one that has room and is not idle."""
        retry_s = min(max((self.expected_wait_s() or 0.0) / 2, 1.0), _MOST_RETRY_S)
        return overloaded(what, jittered_s(retry_s))
