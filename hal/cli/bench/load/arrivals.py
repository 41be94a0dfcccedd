"""When to send: seconds from the start for each request."""

from __future__ import annotations

import random
from enum import StrEnum
from itertools import accumulate


class Arrivals(StrEnum):
    """Values of --arrivals."""

    POISSON = "poisson"
    CONSTANT = "constant"
    BURST = "burst"


def offsets(kind: Arrivals, rate: float, count: int, burst_size: int, seed: int) -> list[float]:
    """`rate` requests per second on average; bursts send `burst_size` at the same moment."""
    if kind is Arrivals.CONSTANT:
        return [i / rate for i in range(count)]
    if kind is Arrivals.BURST:
        return [i // burst_size * burst_size / rate for i in range(count)]
    rng = random.Random(f"arrivals {seed}")
    return list(accumulate(rng.expovariate(rate) for _ in range(count)))
