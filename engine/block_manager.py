"""Who holds which KV block. Bookkeeping only: no tensor, no device, all-or-nothing.

State is arrays over rows (one per slot) and over blocks, so that a step of many sequences is a
few vector operations.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from hal.cache_policy import CachePolicy
from hal.engine.batch import Index, Int32, Swaps
from hal.engine.block_copies import BlockCopies
from hal.engine.pins import PinOutcome, Pins
from hal.engine.prefix_cache import Clock, EvictionReason, PrefixCache
from hal.engine.prefix_hash import KEY_BYTES, NUM_LANES, Lanes, PrefixHasher, PrefixKeys, keys_of
from hal.engine.swap_space import SwapSpace
from hal.errors import EngineError
from hal.kv import peak_blocks

NULL_BLOCK = 0
"""Never handed out: table entries behind a sliding window point to it, so reading it is safe."""

_NO_UPDATES: Int32 = np.empty((0, 3), np.int32)


class BlockManager:
    """Blocks 1..num_blocks-1, each free, used (counted per row) or cached (idle but findable).

    num_rows, max_blocks: block tables and the most blocks of one; a row is started by `attach` or
    `fork` and ended by `free`. window: tokens a query sees, itself included; blocks wholly behind
    it are given back. cache: None shares nothing between requests. secret: keys the hash of
    prefixes; random unless told. swap: where evicted blocks of the cache go; without a window.

    tables          [num_rows, max_blocks] int32
    num_table_blocks [num_rows] int32: entries of each table, those behind the window included
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_rows: int,
        max_blocks: int,
        *,
        window: int | None = None,
        cache: CachePolicy | None = None,
        clock: Clock = time.monotonic,
        secret: bytes | None = None,
        swap: SwapSpace | None = None,
    ) -> None:
        assert swap is None or (window is None and cache is not None)
        self.swap = swap
        self.block_size = block_size
        self.window = window
        self.num_usable = num_blocks - 1
        self.tables = np.zeros((num_rows, max_blocks), np.int32)
        self.num_table_blocks = np.zeros(num_rows, np.int32)
        self._cache = None if cache is None else PrefixCache(num_blocks, cache, clock, swap)
        self._hasher = PrefixHasher(secret or os.urandom(KEY_BYTES), block_size)
        self._free = np.arange(num_blocks - 1, NULL_BLOCK, -1, dtype=np.int32)  # a stack
        self._num_free = self.num_usable
        self._ref_counts = np.zeros(num_blocks, np.int32)
        self._is_findable = np.zeros(num_blocks, np.bool_)
        self._is_started = np.zeros(num_rows, np.bool_)
        self._num_trimmed = np.zeros(num_rows, np.int32)  # leading entries that are NULL_BLOCK
        self._num_committed = np.zeros(num_rows, np.int32)  # full blocks offered to the cache
        # num_table_blocks and _num_committed + 1 in tokens: every step compares with them.
        self._num_places = np.zeros(num_rows, np.int32)
        self._next_commit = np.full(num_rows, block_size, np.int32)
        self._priorities = np.zeros(num_rows, np.int32)  # of the request, for the cache's tiers
        self._states = np.zeros((num_rows, NUM_LANES), np.uint64)  # after the committed blocks
        self._num_matched = np.zeros(num_rows, np.int32)  # leading blocks that others computed
        self._pins = Pins(num_blocks)
        self._updates: list[Int32] = []
        self._copies = BlockCopies()

    @property
    def num_cached(self) -> int:
        return 0 if self._cache is None else self._cache.num_idle

    @property
    def num_available(self) -> int:
        """Blocks that an allocation can take now: the free ones, then the cached ones."""
        return self._num_free + self.num_cached

    @property
    def num_used(self) -> int:
        """Blocks that rows hold, and copies that are not made yet."""
        return self.num_usable - self.num_available - self.num_only_pinned

    @property
    def num_pins(self) -> int:
        return len(self._pins)

    @property
    def num_pinned(self) -> int:
        """Blocks that no row but unpin() can make available."""
        return self._pins.num_blocks

    @property
    def num_only_pinned(self) -> int:
        """Pinned blocks that no row holds."""
        counts = self._pins.counts
        return (
            int(np.count_nonzero((counts > 0) & (counts == self._ref_counts))) if self._pins else 0
        )

    @property
    def has_prefix_cache(self) -> bool:
        return self._cache is not None

    @property
    def evictions(self) -> Counter[EvictionReason]:
        """Cached blocks given up so far, by reason."""
        return Counter() if self._cache is None else self._cache.evictions

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def peak_blocks(self, num_tokens: int, chunk: int) -> int:
        """The most blocks one sequence holds at once while it grows to `num_tokens` by chunks."""
        return peak_blocks(num_tokens, self.block_size, self.window, chunk)

    def num_exclusive(self, rows: Index) -> int:
        """Blocks that become available when each of these rows alone is freed, summed."""
        return int((self._ref_counts[self._held_by(rows)] == 1).sum())

    def prefix_keys(self, tokens: Int32, salt: bytes) -> PrefixKeys:
        """What stands for each full block of `tokens`, but for the last token's: it must run."""
        return self._hasher.prefix(tokens[:0] if self._cache is None else tokens[:-1], salt)

    def match(self, prefix: PrefixKeys) -> list[int]:
        """Cached blocks that hold the start of a prompt."""
        if self._cache is None:
            return []
        if expired := self._cache.expire():
            self._push_free(expired)
        return self._cache.find(prefix.keys)

    def find_swapped(self, prefix: PrefixKeys, num_matched: int) -> list[int]:
        """Swap blocks that go on behind the matched ones, where copying them back pays."""
        if self._cache is None or self.swap is None:
            return []
        return self._cache.find_swapped(prefix.keys[num_matched:])

    def num_needed(self, matched: list[int], num_tokens: int) -> int:
        """Available blocks that a row takes which starts with `matched`: idle ones and new ones."""
        first = self._num_behind_window(len(matched) * self.block_size)
        num_idle = int(np.count_nonzero(self._ref_counts[matched[first:]] == 0))
        return self.num_blocks_for(num_tokens) - len(matched) + num_idle

    def attach(
        self, row: int, prefix: PrefixKeys, matched: list[int], num_tokens: int, priority: int = 0
    ) -> bool:
        """Start a row with `matched` if blocks for `num_tokens` are there, else False."""
        assert not self._is_started[row]
        if self.num_needed(matched, num_tokens) > self.num_available:
            return False
        first = self._num_behind_window(len(matched) * self.block_size)
        visible = np.array(matched[first:], np.int32)
        if self._cache is not None and matched:
            self._cache.count_hits(matched, priority)
        self._share(visible)
        self._start(row, len(matched), first, prefix.state_after(len(matched)))
        self._priorities[row] = priority
        self._set(row, 0, np.concatenate([np.zeros(first, np.int32), visible]))
        return True

    def restore(self, row: int, swapped: list[int]) -> None:
        """The next step copies these swap blocks into new blocks behind those of the row, which
        was attached with room for them."""
        if not swapped:
            return
        assert self._cache is not None and self.swap is not None
        self.swap.hold(swapped)  # room for them may send other blocks there
        start = int(self.num_table_blocks[row])
        blocks = self._take(len(swapped))
        self._set_num_blocks(row, start + len(swapped))
        self._set(row, start, blocks)
        self._cache.restore(swapped, blocks.tolist())

    def allocate(self, row: int, num_computed: int, num_new: int) -> bool:
        """Make positions num_computed .. +num_new writable by this row alone, or change nothing.

        A shared partial block is replaced by a copy. Blocks behind the window are given back.
        """
        assert self._is_started[row]
        if self.window is not None:
            self._trim(row, self._num_behind_window(num_computed))
        num_held = int(self.num_table_blocks[row])
        num_fresh = max(0, self.num_blocks_for(num_computed + num_new) - num_held)
        index, offset = divmod(num_computed, self.block_size)
        is_shared = offset > 0 and bool(self._ref_counts[self.tables[row, index]] > 1)
        if num_fresh + is_shared > self.num_available:
            return False
        if is_shared:
            self._replace_by_copy(row, index)
        if num_fresh:
            self._set_num_blocks(row, num_held + num_fresh)
            self._set(row, num_held, self._take(num_fresh))
        return True

    def are_full(self, rows: Index, num_computed: Int32) -> NDArray[np.bool_]:
        """Which rows have no place for the token after `num_computed`, [N]."""
        full: NDArray[np.bool_] = num_computed == self._num_places.take(rows)
        return full

    def append(self, rows: Index) -> bool:
        """One more block for each of these rows, whose last one is full, or change nothing."""
        assert self.window is None, "allocate() gives back what is behind a window"
        if len(rows) > self.num_available:
            return False
        indices = self.num_table_blocks.take(rows)
        blocks = self._take(len(rows))
        self.tables[rows, indices] = blocks
        self._set_num_blocks(rows, indices + 1)
        self._updates.append(_triples(rows, indices, blocks))
        return True

    def commit(self, rows: Index, tokens: Int32, num_computed: Int32) -> None:
        """Offer the blocks that are full of computed tokens to others.

        tokens [num_rows, >= computed] int32, of all rows; rows [N]; num_computed [N] int32
        """
        if self._cache is None:
            return
        due = num_computed >= self._next_commit.take(rows)
        if not np.count_nonzero(due):
            return
        rows, num_computed = rows[due], num_computed[due]
        first = self._num_committed.take(rows)
        counts = num_computed // self.block_size - first
        ends = counts.cumsum()
        firsts = np.repeat(ends - counts, counts)  # where a pair's row begins among the pairs
        owners = np.repeat(rows, counts)
        indices = np.arange(len(owners)) - firsts + np.repeat(first, counts)
        states = self._chain(owners, indices, firsts, tokens)
        self._states[rows] = states[ends - 1]
        self._set_committed(rows, first + counts)
        blocks, priorities = self.tables[owners, indices], self._priorities[owners]
        before = np.where(indices > 0, self.tables[owners, indices - 1], NULL_BLOCK)
        inserted = self._cache.insert(
            keys_of(states), blocks.tolist(), priorities.tolist(), before.tolist()
        )
        self._is_findable[inserted] = True

    def pin(self, name: str, tokens: Int32, salt: bytes, limit: int) -> PinOutcome:
        """Hold the full blocks of `tokens` until unpin(), if all are here and at most `limit`
        blocks are pinned then. Otherwise nothing changes, and the outcome says what is short."""
        if self._cache is None:
            return PinOutcome(0, 0, 0)
        keys = self._hasher.prefix(tokens, salt).keys
        self._push_free(self._cache.expire())
        blocks = np.array(self._cache.find(keys), np.int32)
        outcome = PinOutcome(len(keys), len(blocks), self._pins.num_new(blocks))
        if keys and outcome.is_whole and self.num_pinned + outcome.num_new <= limit:
            self._share(blocks)
            self._pins.add(name, blocks)
        return outcome

    def is_pinned(self, name: str) -> bool:
        return name in self._pins

    def unpin(self, name: str) -> None:
        """The blocks of a pin are cached like any other again, and the end of it goes first."""
        self._release(self._pins.remove(name)[::-1])

    def fork(self, parent: int, children: Index) -> None:
        """Start rows that share all blocks of `parent`; the first to write a block copies it."""
        assert self._is_started[parent] and not self._is_started[children].any()
        num_blocks, num_trimmed = self.num_table_blocks[parent], self._num_trimmed[parent]
        for child in children.tolist():
            self._share(self.tables[parent, num_trimmed:num_blocks])
            self._start(child, int(num_blocks), int(num_trimmed), self._states[parent])
            self._num_matched[child] = self._num_matched[parent]
            self._set_committed(child, self._num_committed[parent])
            self._priorities[child] = self._priorities[parent]
            self._set(child, 0, self.tables[parent, :num_blocks])

    def free(self, rows: Index, *, retract: bool = False) -> None:
        """Give all blocks back; committed ones stay findable unless `retract` (wrong contents).

        A pin outlives that of a row that only shared its blocks, but not of one that computed them.
        """
        if not self._is_started[rows].all():
            raise EngineError("a block table was freed that holds nothing; please report this")
        # Last block first: the cache evicts the end of a prefix before its start.
        blocks = self._held_by(rows)[::-1]
        if retract and self._cache is not None:
            self._retract(self._suspect(rows))
        self._is_started[rows] = False
        self._set_num_blocks(rows, 0)
        self._release(blocks)

    def take_updates(self) -> Int32:
        """What changed in the tables since the last call, [U, 3]: (row, index, block), in order."""
        updates, self._updates = self._updates, []
        if not updates:
            return _NO_UPDATES
        return updates[0] if len(updates) == 1 else np.concatenate(updates)

    def take_copies(self) -> Int32:
        """The copies this step must make first, [C, 2]: (source, destination).

        No destination is the source of another.
        """
        copies = self._copies.take()
        if held := self._copies.release():
            self._make_available(np.array(held, np.int32))
        return copies

    def take_swaps(self) -> Swaps | None:
        """What this step copies from and to the swap space, before the copies of `take_copies`."""
        return None if self.swap is None else self.swap.take()

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one state and counted right."""
        rows = np.flatnonzero(self._is_started)
        uses = np.bincount(self._held_by(rows), minlength=self.num_usable + 1) + self._pins.counts
        assert np.array_equal(uses, self._ref_counts), "reference counts"
        idle = [] if self._cache is None else self._cache.check()
        free = self._free[: self._num_free]
        states = np.concatenate([free, idle, self._copies.held, np.flatnonzero(uses)])
        everyone = np.arange(1, self.num_usable + 1)
        assert np.array_equal(np.sort(states), everyone), "a block in no state or in two"
        self._copies.check(self._ref_counts)
        if self.swap is not None:
            self.swap.check()
        assert not self._is_findable[free].any()
        held = [self._cache is not None and self._cache.holds(block) for block in range(len(uses))]
        assert np.array_equal(self._is_findable, held), "what can be found"
        self._pins.check()
        assert self._is_findable[self._pins.counts > 0].all(), "a pinned block that nobody finds"
        self._check_tables(rows)

    def _check_tables(self, rows: Index) -> None:
        assert np.array_equal(self._num_places, self.num_table_blocks * self.block_size)
        assert np.array_equal(self._next_commit, (self._num_committed + 1) * self.block_size)
        columns = np.arange(self.tables.shape[1])
        is_null = self.tables[rows] == NULL_BLOCK
        is_trimmed = columns < self._num_trimmed[rows, None]
        is_inside = columns < self.num_table_blocks[rows, None]
        assert np.array_equal(is_null & is_inside, is_trimmed), "entries behind the window"

    def _chain(self, rows: Index, indices: Index, firsts: Index, tokens: Int32) -> Lanes:
        """The state after each block: its own sum, those before it in the row, the row's state."""
        offsets = np.arange(self.block_size)
        contents = tokens[rows[:, None], indices[:, None] * self.block_size + offsets]
        sums = self._hasher.sums(contents, indices)
        running = sums.cumsum(0, dtype=np.uint64)
        states: Lanes = running - running[firsts] + sums[firsts] + self._states[rows]
        return states

    def _num_behind_window(self, num_computed: int) -> int:
        """Leading blocks that no query at or after position `num_computed` can see."""
        if self.window is None:
            return 0
        return max(0, num_computed - self.window + 1) // self.block_size

    def _start(self, row: int, num_blocks: int, num_trimmed: int, state: Lanes) -> None:
        self._is_started[row] = True
        self._set_num_blocks(row, num_blocks)
        self._set_committed(row, num_blocks)
        self._num_matched[row] = num_blocks
        self._num_trimmed[row] = num_trimmed
        self._states[row] = state

    def _set(self, row: int, start: int, blocks: Int32) -> None:
        """Write table entries from `start` on."""
        end = start + len(blocks)
        self.tables[row, start:end] = blocks
        self._updates.append(_triples(row, np.arange(start, end), blocks))

    def _set_num_blocks(self, rows: Index | int, num_blocks: Int32 | int) -> None:
        self.num_table_blocks[rows] = num_blocks
        self._num_places[rows] = num_blocks * self.block_size

    def _set_committed(self, rows: Index | int, num_blocks: Int32 | int) -> None:
        self._num_committed[rows] = num_blocks
        self._next_commit[rows] = (num_blocks + 1) * self.block_size

    def _held_by(self, rows: Index) -> Int32:
        """The blocks of several rows, one row after another, those behind the window left out."""
        starts, ends = self._num_trimmed[rows].tolist(), self.num_table_blocks[rows].tolist()
        spans = zip(rows.tolist(), starts, ends, strict=True)
        parts = [self.tables[row, start:end] for row, start, end in spans]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def _suspect(self, rows: Index) -> Int32:
        """What these rows hold, but for pinned blocks that they found computed."""
        parts = [np.empty(0, np.int32)]
        for row in rows.tolist():
            start, end = self._num_trimmed[row], self.num_table_blocks[row]
            blocks = self.tables[row, start:end]
            is_own = np.arange(start, end) >= self._num_matched[row]
            parts.append(blocks[is_own | (self._pins.counts[blocks] == 0)])
        return np.concatenate(parts)

    def _retract(self, blocks: Int32) -> None:
        assert self._cache is not None
        for name in self._pins.touching(blocks):
            self.unpin(name)
        self._cache.retract(blocks.tolist())
        self._is_findable[blocks] = False

    def _trim(self, row: int, end: int) -> None:
        start = int(self._num_trimmed[row])
        end = min(end, int(self.num_table_blocks[row]))
        if start < end:
            blocks = self.tables[row, start:end].copy()
            self._num_trimmed[row] = end
            self._set(row, start, np.full(end - start, NULL_BLOCK, np.int32))
            self._release(blocks)

    def _replace_by_copy(self, row: int, index: int) -> None:
        source = self.tables[row, index : index + 1].copy()
        destination = self._take(1)
        self._copies.add(int(source[0]), int(destination[0]))
        self._set(row, index, destination)
        self._release(source)

    def _take(self, count: int) -> Int32:
        """Blocks with one holder each: free ones, then expired ones, then victims."""
        if self._cache is not None and count > self._num_free:
            self._push_free(self._cache.expire())
            if count > self._num_free:
                self._push_free(self._cache.evict(count - self._num_free))
        self._num_free -= count
        blocks = self._free[self._num_free : self._num_free + count][::-1].copy()
        self._ref_counts[blocks] = 1
        return blocks

    def _push_free(self, blocks: list[int] | Int32) -> None:
        if len(blocks):
            self._free[self._num_free : self._num_free + len(blocks)] = blocks
            self._is_findable[blocks] = False
            self._num_free += len(blocks)

    def _share(self, blocks: Int32) -> None:
        if self._cache is not None:
            self._cache.unpark(blocks[self._ref_counts[blocks] == 0].tolist())
        self._ref_counts[blocks] += 1

    def _release(self, blocks: Int32) -> None:
        """One holder less for each block, as often as it is named."""
        np.subtract.at(self._ref_counts, blocks, 1)
        counts = self._ref_counts[blocks]
        if (counts < 0).any():
            block = int(blocks[counts < 0][0])
            raise EngineError(f"KV block {block} was freed twice; please report this")
        idle = blocks[counts == 0]
        if len(idle) > 1:  # the holders of one block may all have left in this call
            idle = idle[np.sort(np.unique(idle, return_index=True)[1])]
        self._make_available(self._copies.cancel(idle))

    def _make_available(self, blocks: Int32) -> None:
        is_findable = self._is_findable[blocks]
        if self._cache is not None and is_findable.any():
            self._cache.park(blocks[is_findable].tolist())
            blocks = blocks[~is_findable]
        self._push_free(blocks)


def _triples(rows: Index | int, indices: Index | Int32, blocks: Int32) -> Int32:
    """[N, 3] int32"""
    triples = np.empty((len(blocks), 3), np.int32)
    triples[:, 0], triples[:, 1], triples[:, 2] = rows, indices, blocks
    return triples
