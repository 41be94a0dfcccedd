"""In which order idle cached blocks are given up: expired first, then by tier, then LRU or LFU.

Every list is linked through two int arrays, so that a block enters, leaves and is chosen in O(1),
or O(log n) in the number n of distinct (tier, frequency) pairs.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Iterable, Iterator

from hal.cache_policy import CacheOrder, CachePolicy

_PER_TIER = 2**32
"""A list's key is tier * _PER_TIER + frequency, so keys are in the order of eviction."""


class EvictionQueue:
    """Idle blocks in the order of a policy. LFU ages: a list's frequency starts at that of the
    last victim of its tier, so hits of long ago count no more (LFU-DA, Arlitt et al. 2000).
    """

    def __init__(self, num_blocks: int, policy: CachePolicy) -> None:
        self._policy = policy
        self._next = array("i", [0]) * num_blocks
        self._previous = array("i", [0]) * num_blocks
        self._parked_at = array("d", [0.0]) * (num_blocks if policy.ttl_s < math.inf else 0)
        self._tier = array("i", [0]) * (num_blocks if policy.has_tiers else 0)
        self._hits = array("i", [0]) * (num_blocks if policy.order is CacheOrder.LFU else 0)
        self._heads: dict[int, int] = {}  # list key -> its sentinel in _next and _previous
        self._order: list[int] = []  # a heap of the keys of _heads
        self._spare_heads: list[int] = []
        self._age: dict[int, int] = {}  # by tier
        self._next_expiry = math.inf  # nothing expires before it
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def describe(self, block: int, priority: int) -> None:
        """A block became findable for a request of `priority`."""
        if self._policy.has_tiers:
            self._tier[block] = -priority
        if self._hits:
            self._hits[block] = 1

    def count_hits(self, blocks: Iterable[int], priority: int) -> None:
        """A request shares these blocks; the most urgent of their users says their tier."""
        if self._hits:
            for block in blocks:
                self._hits[block] += 1
        if self._policy.has_tiers:
            for block in blocks:
                self._tier[block] = max(self._tier[block], -priority)

    def park(self, blocks: Iterable[int], now: float) -> None:
        """Blocks that nobody holds any more; of one call the first ones go first."""
        following, previous = self._next, self._previous
        for block in blocks:
            head = self._head_for(block)
            last = previous[head]
            following[last] = previous[head] = block
            following[block], previous[block] = head, last
            if self._parked_at:
                self._parked_at[block] = now
            self._size += 1
        if self._parked_at and self._next_expiry == math.inf:
            self._next_expiry = now + self._policy.ttl_s

    def parked_at(self, block: int) -> float:
        """When an idle block was last held; inf where nothing expires."""
        return self._parked_at[block] if self._parked_at else math.inf

    def unpark(self, blocks: Iterable[int]) -> None:
        """Blocks that somebody holds again, or that must not be kept."""
        for block in blocks:
            self._unlink(block)

    def has_expired(self, now: float) -> bool:
        """Whether `expire` may find something; False is sure."""
        return now >= self._next_expiry

    def expire(self, now: float) -> list[int]:
        """Take out all blocks whose time is over."""
        expired = [block for head in self._heads.values() for block in self._expired(head, now)]
        firsts = (self._next[head] for head in self._heads.values() if self._next[head] != head)
        times = [self._parked_at[block] for block in firsts]
        self._next_expiry = min(times, default=math.inf) + self._policy.ttl_s
        return expired

    def evict(self, count: int) -> list[int]:
        """Take out the `count` blocks that go first; there are as many."""
        victims: list[int] = []
        while len(victims) < count:
            key = self._order[0]
            head = self._heads[key]
            block = self._next[head]
            if block == head:
                self._drop_list(key)
                continue
            self._age[key // _PER_TIER] = key % _PER_TIER
            while block != head and len(victims) < count:
                self._unlink(block)
                victims.append(block)
                block = self._next[head]
        return victims

    def check(self) -> list[int]:
        """Every block in a list; raises AssertionError unless all lists are linked right."""
        assert sorted(self._order) == sorted(self._heads)
        blocks: list[int] = []
        for head in self._heads.values():
            members = list(self._members(head))
            assert all(self._next[self._previous[block]] == block for block in [*members, head])
            assert self._is_by_age(members), "a list is not in the order of time"
            blocks.extend(members)
        assert len(blocks) == len(set(blocks)) == self._size
        return blocks

    def _is_by_age(self, members: list[int]) -> bool:
        times = [self._parked_at[block] for block in members] if self._parked_at else []
        soonest = min(times, default=math.inf) + self._policy.ttl_s
        return times == sorted(times) and soonest >= self._next_expiry

    def _members(self, head: int) -> Iterator[int]:
        block = self._next[head]
        while block != head:
            yield block
            block = self._next[block]

    def _expired(self, head: int, now: float) -> Iterator[int]:
        limit = now - self._policy.ttl_s
        while (block := self._next[head]) != head and self._parked_at[block] <= limit:
            self._unlink(block)
            yield block

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before], self._previous[after] = after, before
        self._size -= 1

    def _head_for(self, block: int) -> int:
        tier = self._tier[block] if self._tier else 0
        frequency = self._age.get(tier, 0) + self._hits[block] if self._hits else 0
        key = tier * _PER_TIER + frequency
        head = self._heads.get(key)
        return self._add_list(key) if head is None else head

    def _add_list(self, key: int) -> int:
        if self._spare_heads:
            head = self._spare_heads.pop()
        else:
            head = len(self._next)
            self._next.append(head)
            self._previous.append(head)
        self._heads[key] = head
        heapq.heappush(self._order, key)
        return head

    def _drop_list(self, key: int) -> None:
        heapq.heappop(self._order)
        self._spare_heads.append(self._heads.pop(key))
