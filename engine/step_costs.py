"""What steps have taken of late: a share that every step has, and one for each prefilled token."""

from __future__ import annotations

_KEPT = 0.95
"""Weight of a step after the next one: some twenty steps count."""
_LEAST_SPREAD = 0.05
"""Of the mean: token counts closer together than this say nothing about a token."""
_MOST_GROWTH = 2.0
"""The most that a step counts, times what was expected: a machine may pause in one."""
_TRUSTED_AFTER = 8


class StepCosts:
    """Least squares of seconds over prefilled tokens, older steps counting less and less."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._token_s: float | None = None

    @property
    def token_s(self) -> float | None:
        """Seconds of one prefilled token; None: no prefill ran yet."""
        return self._token_s

    @property
    def fixed_s(self) -> float:
        """Seconds of a step without prefilled tokens."""
        if not self._weight:
            return 0.0
        return max(0.0, (self._y - (self._token_s or 0.0) * self._x) / self._weight)

    def record(self, num_prefilled: int, seconds: float) -> None:
        """One step, whatever else it ran."""
        if self._num_steps >= _TRUSTED_AFTER and self._token_s is not None:
            expected = self.fixed_s + self._token_s * num_prefilled
            seconds = min(seconds, _MOST_GROWTH * expected) if expected else seconds
        self._num_steps += 1
        self._weight = self._weight * _KEPT + 1.0
        self._x = self._x * _KEPT + num_prefilled
        self._y = self._y * _KEPT + seconds
        self._xx = self._xx * _KEPT + num_prefilled**2
        self._xy = self._xy * _KEPT + num_prefilled * seconds
        self._fit()

    def _fit(self) -> None:
        mean = self._x / self._weight
        variance = self._xx / self._weight - mean * mean
        if variance > (_LEAST_SPREAD * mean) ** 2:
            covariance = self._xy / self._weight - mean * self._y / self._weight
            self._token_s = max(0.0, covariance / variance)
        elif self._token_s is None and mean > 0:
            self._token_s = self._y / self._x  # too much, until steps differ
