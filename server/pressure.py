"""What is given up, in stages, while the server is under pressure, before all are refused alike."""

from __future__ import annotations

import logging
from enum import IntEnum

from hal.engine.request import Request
from hal.server.admission import Admission
from hal.server.loop_lag import LoopLag

MOST_DEFAULT_TOKENS = 1024
"""Of an answer whose request names no max_tokens, from the first stage on."""

_MOST_LAG_S = 0.25
_CALM = 0.8
"""A stage ends at this share of where it began, so that it does not come and go."""

_log = logging.getLogger("hal.server")


class Stage(IntEnum):
    """The number is what /metrics shows."""

    NORMAL = 0
    SHORT_DEFAULTS = 1
    URGENT_ONLY = 2
    DEADLINES_ONLY = 3


_BEGINS = {Stage.SHORT_DEFAULTS: 0.5, Stage.URGENT_ONLY: 0.8, Stage.DEADLINES_ONLY: 0.95}
_MEANING = {
    Stage.NORMAL: "all requests are served as asked",
    Stage.SHORT_DEFAULTS: f"answers without max_tokens end at {MOST_DEFAULT_TOKENS} tokens",
    Stage.URGENT_ONLY: "requests with a priority above 0 are refused",
    Stage.DEADLINES_ONLY: "only requests whose timeout_s will be kept are let in",
}


class Pressure:
    """From the queue's fill and the loop's lag to a stage, and who is refused in it."""

    def __init__(self, admission: Admission, lag: LoopLag) -> None:
        self.lag = lag
        self._admission = admission
        self._stage = Stage.NORMAL

    @property
    def stage(self) -> Stage:
        """As of now; a change is logged."""
        found = self._find()
        if found is not self._stage:
            self._stage = found
            _log.warning(
                "pressure stage %d: the queue is %.0f %% full, the event loop %.0f ms late; %s",
                found,
                100 * self._admission.fill,
                1000 * self.lag.steady_s,
                _MEANING[found],
            )
        return found

    def check(self, request: Request) -> None:
        """Raises ApiError 503 for a request that this stage refuses."""
        stage = self.stage
        if stage >= Stage.DEADLINES_ONLY and request.timeout_s is None:
            raise self._admission.overloaded(
                f"the server is under pressure: {_MEANING[stage]} (timeout_s)"
            )
        if stage >= Stage.URGENT_ONLY and request.priority > 0:
            raise self._admission.overloaded(f"the server is under pressure: {_MEANING[stage]}")

    def _find(self) -> Stage:
        fill = self._admission.fill
        # Without a queue there is nobody to prefer.
        if fill > 0 and self.lag.steady_s > _MOST_LAG_S:
            return Stage.DEADLINES_ONLY
        reached = [
            stage
            for stage, begins in _BEGINS.items()
            if fill > (begins if stage > self._stage else _CALM * begins)
        ]
        return max(reached, default=Stage.NORMAL)
