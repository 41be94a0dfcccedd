"""Which full blocks can be shared: a map from content to block, and the queue of the idle ones."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum

from hal.cache_policy import CachePolicy
from hal.engine.eviction import EvictionQueue
from hal.engine.swap_space import SwapSpace

Clock = Callable[[], float]


class EvictionReason(StrEnum):
    """Why a cached block was given up."""

    CAPACITY = "capacity"
    EXPIRED = "expired"


class PrefixCache:
    """Blocks by key. An idle block (no sequence holds it) can be evicted, as the policy says.

    swap: where the contents of evicted blocks go
    """

    def __init__(
        self,
        num_blocks: int,
        policy: CachePolicy | None = None,
        clock: Clock = time.monotonic,
        swap: SwapSpace | None = None,
    ) -> None:
        policy = CachePolicy() if policy is None else policy
        self.evictions: Counter[EvictionReason] = Counter()
        self._block_of: dict[bytes, int] = {}
        self._key_of: list[bytes | None] = [None] * num_blocks
        # The block that lately followed each one: a guess that its key confirms. A prefix is read
        # in order, so this spares the map's cache misses. Entry 0 is for what starts a prefix.
        self._following = array("i", [0]) * num_blocks
        self._queue = EvictionQueue(num_blocks, policy)
        self._ttl_s = policy.ttl_s
        self._swap = swap
        self._clock = clock
        self._now = clock()

    @property
    def num_idle(self) -> int:
        return len(self._queue)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the leading keys that are here."""
        found: list[int] = []
        block_of, key_of, following = self._block_of, self._key_of, self._following
        append, last = found.append, 0
        for key in keys:
            block = following[last]
            if key_of[block] != key:
                known = block_of.get(key)
                if known is None:
                    break
                following[last] = block = known
            append(block)
            last = block
        return found

    def holds(self, block: int) -> bool:
        return self._key_of[block] is not None

    def insert(
        self, keys: list[bytes], blocks: list[int], priorities: list[int], before: list[int]
    ) -> list[int]:
        """Make blocks findable; returns which. Of two with equal content the first one stays.

        before: the block that each one follows in its row, 0 if none
        """
        inserted = []
        for key, block, priority, last in zip(keys, blocks, priorities, before, strict=True):
            if key not in self._block_of and self._key_of[block] is None:
                self._block_of[key] = block
                self._key_of[block] = key
                self._following[last] = block
                self._queue.describe(block, priority)
                inserted.append(block)
        return inserted

    def count_hits(self, blocks: Iterable[int], priority: int) -> None:
        """A request of `priority` starts with these blocks."""
        self._queue.count_hits(blocks, priority)

    def park(self, blocks: Iterable[int]) -> None:
        """The last sequence let go of held blocks; of one call the first ones are evicted first."""
        self._queue.park(blocks, self._tick())

    def unpark(self, blocks: Iterable[int]) -> None:
        """A sequence took idle blocks again."""
        self._queue.unpark(blocks)

    def expire(self) -> list[int]:
        """Forget and return the idle blocks that nobody used for longer than the TTL."""
        if not self._queue.has_expired(self._tick()):
            return []
        return self._give_up(self._queue.expire(self._now), EvictionReason.EXPIRED)

    def evict(self, count: int) -> list[int]:
        """Forget and return `count` idle blocks, those that the policy puts first."""
        blocks = self._queue.evict(count)
        if self._swap is not None:
            self._swap.keep(self._keys(blocks), blocks, map(self._queue.parked_at, blocks))
        return self._give_up(blocks, EvictionReason.CAPACITY)

    def find_swapped(self, keys: Iterable[bytes]) -> list[int]:
        """Swap blocks of the leading keys, under the same TTL as blocks."""
        assert self._swap is not None
        return self._swap.find(keys, self._tick() - self._ttl_s)

    def restore(self, swapped: list[int], blocks: list[int]) -> None:
        """Swap blocks that somebody uses again go into these blocks."""
        assert self._swap is not None
        self._swap.restore(swapped, blocks, self._tick())

    def retract(self, blocks: list[int]) -> None:
        """Forget blocks whose contents are wrong, and the copies of them that were swapped."""
        if self._swap is not None:
            self._swap.forget(self._keys(blocks))
        self.forget(blocks)

    def forget(self, blocks: Iterable[int]) -> None:
        """Nobody finds these blocks any more (sequences that hold them keep them)."""
        for block in blocks:
            key = self._key_of[block]
            if key is not None:
                self._key_of[block] = None
                del self._block_of[key]

    def check(self) -> list[int]:
        """The idle blocks; raises AssertionError unless both maps agree and all are findable."""
        held = {block: key for block, key in enumerate(self._key_of) if key is not None}
        assert {block: key for key, block in self._block_of.items()} == held
        idle = self._queue.check()
        assert held.keys() >= set(idle), "an idle block that nobody can find"
        return idle

    def _keys(self, blocks: list[int]) -> list[bytes]:
        """Of those that can be found."""
        return [key for block in blocks if (key := self._key_of[block]) is not None]

    def _give_up(self, blocks: list[int], reason: EvictionReason) -> list[int]:
        self.forget(blocks)
        self.evictions[reason] += len(blocks)
        return blocks

    def _tick(self) -> float:
        """The time; never earlier than before, or the queue's lists would be out of order."""
        self._now = max(self._now, self._clock())
        return self._now
