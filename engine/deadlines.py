"""Which waiting sequences can no longer be in time."""

from __future__ import annotations

import heapq
import math

from hal.engine.sequence import Sequence, Status

_FORGETTING = 1.02
_LEAST_LIMIT = 64


class Deadlines:
    """Waiting sequences by deadline, and the least time that a step has taken of late."""

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._limit = _LEAST_LIMIT
        self._fastest_step_s = math.inf

    def add(self, seq: Sequence) -> None:
        """A sequence waits, for the first time or again."""
        if seq.deadline == math.inf:
            return
        if len(self._heap) >= self._limit:
            self._forget_others()
        heapq.heappush(self._heap, (seq.deadline, seq.arrival, seq.index, seq))

    def _forget_others(self) -> None:
        """Those that no longer wait would stay until their time is over, prompts and all."""
        self._heap = [entry for entry in self._heap if entry[-1].status is Status.WAITING]
        heapq.heapify(self._heap)
        self._limit = max(_LEAST_LIMIT, 2 * len(self._heap))

    def record_step(self, seconds: float) -> None:
        """An old minimum is forgotten slowly: it may have been of a lighter load."""
        self._fastest_step_s = min(seconds, self._fastest_step_s * _FORGETTING)

    def is_hopeless(self, seq: Sequence, num_steps: int, now: float) -> bool:
        """Whether the steps of its prefill, each as fast as any, end after the deadline."""
        least_s = 0.0 if self._fastest_step_s == math.inf else num_steps * self._fastest_step_s
        return now + least_s > seq.deadline

    def take_late(self, now: float) -> list[Sequence]:
        """Those whose deadline has passed while they waited."""
        late: dict[Sequence, None] = {}  # who was preempted is in the heap twice
        while self._heap and self._heap[0][0] < now:
            *_, seq = heapq.heappop(self._heap)
            if seq.status is Status.WAITING:
                late[seq] = None
        return list(late)


Entry = tuple[float, int, int, Sequence]


def too_late(seq: Sequence, now: float) -> str:
    """What the sender of a dropped request is told."""
    timeout_s = seq.request.timeout_s
    assert timeout_s is not None
    waited_s = now - (seq.deadline - timeout_s)
    return (
        f"the request waited {waited_s:.3g} s and cannot start within its timeout_s of "
        f"{timeout_s:g}, so it was dropped before it cost a prefill. Give it more time, send "
        "fewer requests at once, or a priority below that of others"
    )
