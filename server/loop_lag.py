"""How late the front's event loop is: what blocks it delays every stream and every probe."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from itertools import islice

_INTERVAL_S = 0.1
_WINDOW_S = 10.0
_STEADY = 10


class LoopLag:
    """The delays of a timer in the last ten seconds."""

    def __init__(self) -> None:
        self._lags: deque[float] = deque([0.0], maxlen=round(_WINDOW_S / _INTERVAL_S))

    @property
    def steady_s(self) -> float:
        """The least of the last second: one slow moment is not what a loop suffers from."""
        return min(islice(reversed(self._lags), _STEADY))

    @property
    def worst_s(self) -> float:
        return max(self._lags)

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(_INTERVAL_S)
            self._lags.append(max(0.0, time.monotonic() - before - _INTERVAL_S))
