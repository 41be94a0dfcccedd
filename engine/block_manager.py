"""Who holds which KV block. Bookkeeping only: no tensor, no device, all-or-nothing."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hal.engine.prefix_cache import PrefixCache, block_digest, root_digest
from hal.errors import EngineError
from hal.kv import peak_blocks

NULL_BLOCK = 0
"""Never handed out: table entries behind a sliding window point to it, so reading it is safe."""


@dataclass(slots=True, eq=False)
class BlockTable:
    """One sequence's blocks. Digests survive `free()`: a resumed sequence has the same tokens.

    num_committed  full blocks already offered to the prefix cache
    num_trimmed    leading entries given up behind the window (now NULL_BLOCK)
    unsent         indices that changed since an executor last saw them
    """

    salt: bytes = b""
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_committed: int = 0
    num_trimmed: int = 0
    unsent: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """Contents of `source` must be in `destination` before the step writes anything."""

    source: int
    destination: int


class BlockManager:
    """Blocks 1..num_blocks-1, each free, used (counted per table) or cached (idle but findable).

    window: tokens a query sees, itself included; blocks wholly behind it are given back.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        window: int | None = None,
        prefix_caching: bool = True,
    ) -> None:
        self.block_size = block_size
        self.window = window
        self.num_usable = num_blocks - 1
        self._cache = PrefixCache() if prefix_caching else None
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._ref_counts = [0] * num_blocks
        self._tables: set[BlockTable] = set()
        self._copies: dict[int, int] = {}  # destination -> source
        # A copy reads its source when the step starts: until then it must not get a new owner.
        self._held: list[int] = []

    @property
    def num_cached(self) -> int:
        return 0 if self._cache is None else self._cache.num_idle

    @property
    def num_available(self) -> int:
        """Blocks that an allocation can take now: the free ones, then the cached ones."""
        return len(self._free) + self.num_cached

    @property
    def num_used(self) -> int:
        return self.num_usable - self.num_available

    @property
    def has_prefix_cache(self) -> bool:
        return self._cache is not None

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def peak_blocks(self, num_tokens: int, chunk: int) -> int:
        """The most blocks one sequence holds at once while it grows to `num_tokens` by chunks."""
        return peak_blocks(num_tokens, self.block_size, self.window, chunk)

    def num_exclusive(self, table: BlockTable) -> int:
        """Blocks that become available when this table is freed."""
        return sum(self._ref_counts[b] == 1 for b in table.blocks if b != NULL_BLOCK)

    def match(self, table: BlockTable, tokens: array[int]) -> list[int]:
        """Cached blocks that hold the start of `tokens`, never the last token's: it must run."""
        if self._cache is None:
            return []
        matched: list[int] = []
        for index in range((len(tokens) - 1) // self.block_size):
            block = self._cache.find(self._digest(table, tokens, index))
            if block is None:
                break
            matched.append(block)
        return matched

    def attach(self, table: BlockTable, matched: list[int], num_tokens: int) -> bool:
        """Start an empty table with `matched` if blocks for `num_tokens` are there, else False."""
        assert table not in self._tables and not table.blocks
        first = self._num_behind_window(len(matched) * self.block_size)
        visible = matched[first:]
        num_idle = sum(self._is_idle(block) for block in visible)
        needed = self.num_blocks_for(num_tokens) - len(matched)
        if needed > self.num_available - num_idle:
            return False
        for block in visible:
            self._share(block)
        self._tables.add(table)
        table.blocks = [NULL_BLOCK] * (len(matched) - len(visible)) + visible
        table.num_trimmed = len(matched) - len(visible)
        table.num_committed = len(matched)
        table.unsent = list(range(len(matched)))
        return True

    def allocate(self, table: BlockTable, num_computed: int, num_new: int) -> bool:
        """Make positions num_computed .. +num_new writable by this table alone, or change nothing.

        A shared partial block is replaced by a copy. Blocks behind the window are given back.
        """
        assert table in self._tables
        if self.window is not None:
            self._trim(table, self._num_behind_window(num_computed))
        blocks = table.blocks
        num_fresh = self.num_blocks_for(num_computed + num_new) - len(blocks)
        index, offset = divmod(num_computed, self.block_size)
        is_shared = offset > 0 and self._ref_counts[blocks[index]] > 1
        if num_fresh + is_shared > self.num_available:
            return False
        if is_shared:
            self._replace_by_copy(table, index)
        for _ in range(num_fresh):
            table.unsent.append(len(blocks))
            blocks.append(self._take())
        return True

    def commit(self, table: BlockTable, tokens: array[int], num_computed: int) -> None:
        """Offer the blocks that are full of computed tokens to other sequences."""
        if self._cache is None:
            return
        for index in range(table.num_committed, num_computed // self.block_size):
            self._cache.insert(self._digest(table, tokens, index), table.blocks[index])
            table.num_committed = index + 1

    def fork(self, parent: BlockTable, child: BlockTable) -> None:
        """Let an empty table share all blocks of `parent`; the first to write a block copies it."""
        assert parent in self._tables and child not in self._tables
        for block in parent.blocks:
            if block != NULL_BLOCK:
                self._share(block)
        self._tables.add(child)
        child.blocks = parent.blocks.copy()
        child.digests = parent.digests.copy()
        child.num_committed = parent.num_committed
        child.num_trimmed = parent.num_trimmed
        child.unsent = list(range(len(child.blocks)))

    def free(self, table: BlockTable, *, retract: bool = False) -> None:
        """Give all blocks back; committed ones stay findable unless `retract` (wrong contents)."""
        if table not in self._tables:
            raise EngineError("a block table was freed that holds nothing; please report this")
        self._tables.remove(table)
        # Last block first: the cache evicts the end of a prefix before its start.
        for block in reversed(table.blocks):
            if block != NULL_BLOCK:
                if retract and self._cache is not None:
                    self._cache.forget(block)
                self._release(block)
        table.blocks = []
        table.unsent = []

    def take_copies(self) -> list[BlockCopy]:
        """The copies that this step must make first. No destination is the source of another."""
        copies = [BlockCopy(source, destination) for destination, source in self._copies.items()]
        self._copies.clear()
        held, self._held = self._held, []
        for block in held:
            self._make_available(block)
        return copies

    def check(self) -> None:
        """Raise AssertionError unless every block is in exactly one state and counted right."""
        uses = Counter(block for table in self._tables for block in table.blocks)
        del uses[NULL_BLOCK]
        assert {b: n for b, n in enumerate(self._ref_counts) if n} == uses, "reference counts"
        idle = [b for b in range(len(self._ref_counts)) if self._is_idle(b)]
        assert len(idle) == self.num_cached
        states = sorted([*self._free, *idle, *self._held, *uses])
        assert states == list(range(1, self.num_usable + 1)), "a block in no state or in two"
        for destination, source in self._copies.items():
            assert self._ref_counts[destination] == 1 and source not in self._copies
        for table in self._tables:
            assert all(b == NULL_BLOCK for b in table.blocks[: table.num_trimmed])
            assert NULL_BLOCK not in table.blocks[table.num_trimmed :]
        if self._cache is not None:
            self._cache.check()
            assert not any(self._cache.holds(block) for block in self._free)

    def _digest(self, table: BlockTable, tokens: Sequence[int], index: int) -> bytes:
        digests = table.digests
        while len(digests) <= index:
            start = len(digests) * self.block_size
            parent = digests[-1] if digests else root_digest(table.salt)
            token_bytes = array("i", tokens[start : start + self.block_size]).tobytes()
            digests.append(block_digest(parent, token_bytes))
        return digests[index]

    def _num_behind_window(self, num_computed: int) -> int:
        """Leading blocks that no query at or after position `num_computed` can see."""
        if self.window is None:
            return 0
        return max(0, num_computed - self.window + 1) // self.block_size

    def _trim(self, table: BlockTable, end: int) -> None:
        for index in range(table.num_trimmed, min(end, len(table.blocks))):
            self._release(table.blocks[index])
            table.blocks[index] = NULL_BLOCK
            table.unsent.append(index)
            table.num_trimmed = index + 1

    def _replace_by_copy(self, table: BlockTable, index: int) -> None:
        source = table.blocks[index]
        destination = self._take()
        self._copies[destination] = source
        table.blocks[index] = destination
        table.unsent.append(index)
        self._release(source)

    def _is_idle(self, block: int) -> bool:
        return self._cache is not None and self._cache.is_idle(block)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            assert self._cache is not None
            block = self._cache.evict()
        self._ref_counts[block] = 1
        return block

    def _share(self, block: int) -> None:
        if self._cache is not None and self._cache.is_idle(block):
            self._cache.unpark(block)
        self._ref_counts[block] += 1

    def _release(self, block: int) -> None:
        count = self._ref_counts[block] - 1
        if count < 0:
            raise EngineError(f"KV block {block} was freed twice; please report this")
        self._ref_counts[block] = count
        if count > 0:
            return
        self._copies.pop(block, None)
        if block in self._copies.values():
            self._held.append(block)
        else:
            self._make_available(block)

    def _make_available(self, block: int) -> None:
        if self._cache is not None and self._cache.holds(block):
            self._cache.park(block)
        else:
            self._free.append(block)
