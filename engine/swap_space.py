"""KV blocks that left the device: what they held lies in host memory, and can be copied back.

Bookkeeping only, as in the block manager: a step makes the copies before it runs anything.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hal.engine.batch import Swaps

_FORGETTING = 1.02


class SwapCosts:
    """Seconds of a block by copy and by computation, the least of late: an old one is forgotten
    slowly, since it may have been of a lighter load."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._copy_s: float | None = None
        self._compute_s: float | None = None

    def record(self, num_copies: int, copies_s: float, token_s: float | None) -> None:
        """What a step's copies took, and what a token of a prefill takes, if that is known."""
        if num_copies:
            copy_s = copies_s / num_copies
            least = copy_s if self._copy_s is None else self._copy_s * _FORGETTING
            self._copy_s = min(copy_s, least)
        if token_s is not None:
            self._compute_s = token_s * self._block_size

    def is_cheaper(self, num_copies: int) -> bool:
        """Whether so many copies of a block take no longer than computing it. True until both are
        known, and again after many refusals: nothing else would measure a copy again."""
        if self._copy_s is None or self._compute_s is None:
            return True
        if num_copies * self._copy_s <= self._compute_s:
            return True
        self._copy_s /= _FORGETTING
        return False


class SwapSpace:
    """Swap blocks 0..num_blocks-1 by the key of their contents, the least recently used goes first.

    A block that comes back keeps its copy here, so it can be evicted again without another.
    num_outs, num_ins: blocks copied so far
    """

    def __init__(self, num_blocks: int, costs: SwapCosts) -> None:
        self.num_blocks = num_blocks
        self.num_outs = 0
        self.num_ins = 0
        self._costs = costs
        self._place_of: dict[bytes, int] = {}  # the least recently used first
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._used_at = array("d", [0.0]) * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._outs: dict[int, int] = {}  # swap block -> block
        self._ins: dict[int, int] = {}  # block -> swap block
        self._read: set[int] = set()  # by the next step: must keep what they hold until then
        self._written: list[int] = []  # by the step in flight

    @property
    def num_used(self) -> int:
        return len(self._place_of)

    def keep(self, keys: Sequence[bytes], blocks: Sequence[int], used_at: Iterable[float]) -> None:
        """Copy evicted blocks here with the next step, where two copies take less than computing
        them. used_at: when each was last held."""
        if not self._costs.is_cheaper(2):
            return
        for key, block, time in zip(keys, blocks, used_at, strict=True):
            place = self._place_of.pop(key, None)
            if place is None:
                place = self._new_place()
                if place is None:
                    return
                self._key_of[place] = key
                self._outs[place] = block
            self._place_of[key] = place
            self._used_at[place] = time

    def find(self, keys: Iterable[bytes], oldest: float) -> list[int]:
        """Swap blocks of the leading keys that are here, last used after `oldest`; none where
        computing them takes less."""
        found = list(self._leading(keys, oldest))
        return found if found and self._costs.is_cheaper(1) else []

    def hold(self, places: Iterable[int]) -> None:
        """The next step reads these: until then nothing else goes there."""
        self._read.update(places)

    def restore(self, places: Sequence[int], blocks: Sequence[int], now: float) -> None:
        """Copy held swap blocks back with the next step. Who lets go of such a block before that
        need not say so: whatever is written there comes after the copy."""
        for place, block in zip(places, blocks, strict=True):
            assert place in self._read
            self._ins[block] = place
            self._used_at[place] = now
            key = self._key_of[place]
            assert key is not None
            self._place_of[key] = self._place_of.pop(key)

    def take(self) -> Swaps | None:
        """What the next step copies; None without any. `settle` or `lose` follows."""
        self._read.clear()
        if not self._outs and not self._ins:
            return None
        outs, ins = self._outs, self._ins
        self._outs, self._ins, self._written = {}, {}, list(outs)
        self.num_outs += len(outs)
        self.num_ins += len(ins)
        return Swaps(
            outs=_pairs([(block, place) for place, block in outs.items()]),
            ins=_pairs([(place, block) for block, place in ins.items()]),
        )

    def settle(self, num_copies: int, copies_s: float, token_s: float | None) -> None:
        """The step in flight is done; its costs as SwapCosts.record takes them."""
        self._written = []
        self._costs.record(num_copies, copies_s, token_s)

    def lose(self) -> None:
        """The step in flight was lost: nobody knows whether it made its copies."""
        self.forget([key for place in self._written if (key := self._key_of[place]) is not None])
        self._written = []

    def forget(self, keys: Iterable[bytes]) -> None:
        """What was computed for these is wrong. Between a step and the next schedule only."""
        assert not self._read
        for key in keys:
            place = self._place_of.pop(key, None)
            if place is not None:
                self._empty(place)

    def check(self) -> None:
        """Raise AssertionError unless every swap block is free or has the one key that finds it."""
        held = {place: key for place, key in enumerate(self._key_of) if key is not None}
        assert {place: key for key, place in self._place_of.items()} == held, "keys of swap blocks"
        everyone = sorted([*self._free, *held])
        assert everyone == list(range(self.num_blocks)), "a swap block in no state or in two"
        assert self._outs.keys() <= held.keys() and self._read <= held.keys()
        assert set(self._ins.values()) <= self._read

    def _leading(self, keys: Iterable[bytes], oldest: float) -> Iterator[int]:
        for key in keys:
            place = self._place_of.get(key)
            if place is None or self._used_at[place] <= oldest:
                return
            yield place

    def _new_place(self) -> int | None:
        """A free one, or else the least recently used; None while all of them are to be read."""
        if not self._free:
            key = next((k for k, place in self._place_of.items() if place not in self._read), None)
            if key is None:
                return None
            self._empty(self._place_of.pop(key))
        return self._free.pop()

    def _empty(self, place: int) -> None:
        self._key_of[place] = None
        self._outs.pop(place, None)
        self._free.append(place)


def _pairs(pairs: list[tuple[int, int]]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.array(pairs, np.int32).reshape(-1, 2)
