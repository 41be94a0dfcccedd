"""Largest and smallest settings that fit, by asking the memory plan itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hal.errors import ConfigError, MemoryPlanError
from hal.memory import memory_budget
from hal.planning.parallel import legal_tp
from hal.planning.settings import PlanSettings
from hal.planning.sizing import Sized, Sizer
from hal.planning.target import PlanDevice

MAX_SEQUENCES = 1 << 20


def fits(sizer: Sizer, settings: PlanSettings, device: PlanDevice) -> bool:
    """Whether start-up with these settings would get its memory; contradictions do not fit."""
    try:
        return sizer.size(settings, device).fits
    except (ConfigError, MemoryPlanError):
        return False


def largest(accepts: Callable[[int], bool], limit: int) -> int:
    """An n <= limit that is accepted while n + 1 is not (or limit itself); 0 where 1 is refused."""
    if limit < 1 or not accepts(1):
        return 0
    if accepts(limit):
        return limit
    low, high = 1, limit
    while high - low > 1:
        middle = (low + high) // 2
        if accepts(middle):
            low = middle
        else:
            high = middle
    return low


def longest_context(sizer: Sizer, settings: PlanSettings, device: PlanDevice, limit: int) -> int:
    """The longest ctx up to `limit` for the settings' concurrency; 0: none."""
    return largest(lambda ctx: fits(sizer, replace(settings, ctx=ctx, typical=None), device), limit)


def most_sequences(
    sizer: Sizer, settings: PlanSettings, device: PlanDevice, length: int | None = None
) -> int:
    """How many sequences fit at once, of full length or of `length` tokens; 0: none."""

    def accepts(count: int) -> bool:
        wanted = replace(settings, concurrency=count, max_num_seqs=None)
        try:
            sized = sizer.size(wanted, device)
            if length is None:
                return sized.fits
            return _fit_at(sized, count, length)
        except (ConfigError, MemoryPlanError):
            return False

    bound = 1
    while bound < MAX_SEQUENCES and accepts(bound):
        bound *= 2
    return largest(accepts, min(bound, MAX_SEQUENCES))


def _fit_at(sized: Sized, count: int, length: int) -> bool:
    inputs = sized.inputs
    shared = inputs.num_extra_blocks * inputs.kv_bytes_per_block
    kv_bytes = count * sized.sequence_bytes(length)
    return inputs.fixed_bytes + shared + kv_bytes <= memory_budget(inputs)


def smallest_tp(
    sizer: Sizer, settings: PlanSettings, device: PlanDevice, above: int = 0
) -> int | None:
    """The fewest devices that divide the heads and fit; None where none up to the limit does."""
    for tp in legal_tp(sizer.model.shape):
        if tp > above and fits(sizer, replace(settings, tp=tp), device):
            return tp
    return None
