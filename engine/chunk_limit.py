"""How many tokens may be prefilled beside decodes, so that the next tokens are not late."""

from __future__ import annotations

from hal.engine.scheduler_config import SchedulerConfig
from hal.engine.step_costs import StepCosts

_AIM = 0.9
"""Of the target: steps scatter."""
_LEAST_GROWTH = 1.125
_LEAST_CUT = 0.97
"""A limit that fits better by less changes nothing, or noise would be followed. Late tokens are the
worse mistake, so it falls sooner than it rises."""
_MOST_GROWTH = 2.0


class ChunkLimit:
    """Follows the measured costs of steps, if there is a target. A block of tokens is always
    allowed, so that no prefill waits for ever."""

    def __init__(self, config: SchedulerConfig, costs: StepCosts) -> None:
        self._target_s = config.inter_token_target_s
        self._least = float(config.block_size)
        self._limit = self._least
        self._costs = costs

    def cut(self, budget: int) -> int:
        """What of a step's tokens may be prefilled beside its decodes."""
        if self._target_s is None:
            return budget
        if (token_s := self._costs.token_s) is not None:
            room_s = _AIM * self._target_s - self._costs.fixed_s
            self._follow(room_s / token_s if token_s > 0 else float(budget))
        return min(budget, int(self._limit))

    def _follow(self, fitting: float) -> None:
        fitting = max(self._least, min(fitting, self._limit * _MOST_GROWTH))
        if not _LEAST_CUT * self._limit < fitting < _LEAST_GROWTH * self._limit:
            self._limit = fitting
