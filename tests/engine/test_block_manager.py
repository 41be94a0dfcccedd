"""The block manager against a model that keeps every table's blocks as plain sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hal.cache_policy import CachePolicy, parse_policy
from hal.engine.batch import Index, Int32
from hal.engine.block_manager import NULL_BLOCK, BlockManager
from hal.errors import EngineError

BLOCK_SIZE = 4
NUM_ROWS = 8
MAX_TOKENS = 64


def make_manager(num_blocks: int, *, window: int | None = None) -> BlockManager:
    max_blocks = MAX_TOKENS // BLOCK_SIZE
    return BlockManager(num_blocks, BLOCK_SIZE, NUM_ROWS, max_blocks, window=window)


def ids(*tokens: int) -> Int32:
    return np.array(tokens, np.int32)


def rows(*numbers: int) -> Index:
    return np.array(numbers, np.intp)


def started(manager: BlockManager, num_tokens: int, row: int = 0) -> int:
    """A row that can hold `num_tokens`, none of them cached."""
    assert manager.attach(row, manager.prefix_keys(ids(), b""), [], num_tokens)
    assert manager.allocate(row, 0, num_tokens)
    return row


def blocks_of(manager: BlockManager, row: int) -> list[int]:
    blocks: list[int] = manager.tables[row, : manager.num_table_blocks[row]].tolist()
    return blocks


def test_allocation_is_all_or_nothing() -> None:
    manager = make_manager(4)
    row = started(manager, 4)
    before = blocks_of(manager, row)
    assert not manager.allocate(row, 4, 12)
    assert (blocks_of(manager, row), manager.num_available) == (before, 2)
    assert manager.allocate(row, 4, 8)
    assert manager.num_available == 0
    manager.check()


def test_null_block_is_never_handed_out() -> None:
    manager = make_manager(9)
    row = started(manager, 8 * BLOCK_SIZE)
    assert sorted(blocks_of(manager, row)) == list(range(1, 9))


def test_one_token_starts_a_block_only_at_a_boundary() -> None:
    manager = make_manager(9)
    row = started(manager, 1)
    for num_computed in range(1, 9):
        assert manager.allocate(row, num_computed, 1)
        assert len(blocks_of(manager, row)) == num_computed // BLOCK_SIZE + 1
    updates = manager.take_updates()
    assert updates[:, :2].tolist() == [[row, 0], [row, 1], [row, 2]]
    assert updates[:, 2].tolist() == blocks_of(manager, row)
    assert manager.take_updates().shape == (0, 3)


def test_many_rows_get_a_block_each_in_one_call_or_none_does() -> None:
    manager = make_manager(8)
    for row in range(3):
        started(manager, BLOCK_SIZE, row)
    manager.take_updates()
    assert manager.append(rows(2, 0))
    assert [len(blocks_of(manager, row)) for row in range(3)] == [2, 1, 2]
    assert manager.take_updates()[:, :2].tolist() == [[2, 1], [0, 1]]
    assert not manager.append(rows(0, 1, 2)), "2 blocks are left"
    assert manager.num_available == 2
    manager.check()


def test_freeing_a_row_twice_raises() -> None:
    manager = make_manager(4)
    row = started(manager, 5)
    manager.free(rows(row))
    with pytest.raises(EngineError, match="holds nothing"):
        manager.free(rows(row))
    assert manager.num_available == 3


def test_freeing_a_block_twice_raises() -> None:
    manager = make_manager(4)
    row = started(manager, 4)
    manager.tables[row, 1] = manager.tables[row, 0]
    manager.num_table_blocks[row] = 2
    with pytest.raises(EngineError, match="freed twice"):
        manager.free(rows(row))


def test_check_sees_a_wrong_count_and_a_lost_block() -> None:
    manager = make_manager(4)
    row = started(manager, 4)
    manager.num_table_blocks[row] = 0
    with pytest.raises(AssertionError, match="reference counts"):
        manager.check()
    manager.num_table_blocks[row] = 1
    manager.check()
    manager._num_free -= 1
    with pytest.raises(AssertionError, match="no state"):
        manager.check()


def test_fork_shares_and_the_first_writer_copies() -> None:
    manager = make_manager(8)
    parent, child = started(manager, 6), 1
    manager.fork(parent, rows(child))
    full, partial = blocks_of(manager, parent)
    assert blocks_of(manager, child) == [full, partial]
    assert manager.num_used == 2
    manager.take_updates()
    assert manager.allocate(parent, 6, 1)
    copied = blocks_of(manager, parent)[1]
    assert blocks_of(manager, parent) == [full, copied]
    assert copied != partial
    assert manager.take_updates().tolist() == [[parent, 1, copied]]
    assert manager.allocate(child, 6, 1)
    assert blocks_of(manager, child) == [full, partial], "the last holder writes in place"
    assert manager.take_copies().tolist() == [[partial, copied]]
    assert manager.take_copies().shape == (0, 2)
    manager.check()


def test_fork_at_a_block_boundary_copies_nothing() -> None:
    manager = make_manager(8)
    parent, child = started(manager, 4), 1
    manager.fork(parent, rows(child))
    assert manager.append(rows(parent, child))
    assert len(manager.take_copies()) == 0
    first, second = blocks_of(manager, parent), blocks_of(manager, child)
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_the_source_of_a_copy_gets_no_new_owner_in_the_same_step() -> None:
    manager = make_manager(3)
    parent, child = started(manager, 2), 1
    manager.fork(parent, rows(child))
    assert manager.allocate(parent, 2, 1)
    (source,) = blocks_of(manager, child)
    manager.free(rows(child))
    manager.check()
    assert manager.num_available == 0, "the copy has not been made yet"
    assert manager.take_copies()[:, 0].tolist() == [source]
    assert manager.num_available == 1
    manager.check()


def test_a_copy_for_a_freed_row_is_dropped() -> None:
    manager = make_manager(4)
    parent, child = started(manager, 2), 1
    manager.fork(parent, rows(child))
    assert manager.allocate(parent, 2, 1)
    manager.free(rows(parent))
    assert len(manager.take_copies()) == 0
    assert manager.num_used == 1


def test_rows_that_share_a_block_can_be_freed_together() -> None:
    manager = make_manager(8)
    parent = started(manager, 6)
    manager.fork(parent, rows(1, 2))
    assert manager.num_exclusive(rows(0, 1, 2)) == 0
    manager.free(rows(0, 1, 2))
    assert manager.num_used == 0
    manager.check()


def test_a_failed_copy_on_write_changes_nothing() -> None:
    manager = make_manager(2)
    parent, child = started(manager, 2), 1
    manager.fork(parent, rows(child))
    assert not manager.allocate(child, 2, 1)
    assert blocks_of(manager, child) == blocks_of(manager, parent)
    assert len(manager.take_copies()) == 0
    manager.check()


def test_window_gives_back_blocks_that_no_later_query_sees() -> None:
    manager = make_manager(9, window=5)
    row = started(manager, 8)
    # The query at position 8 sees 4..8; the one at 7 saw 3..7, so block 0 was needed until now.
    assert manager.allocate(row, 7, 1)
    assert NULL_BLOCK not in blocks_of(manager, row)
    manager.take_updates()
    assert manager.allocate(row, 8, 1)
    blocks = blocks_of(manager, row)
    assert blocks[0] == NULL_BLOCK
    assert NULL_BLOCK not in blocks[1:]
    assert manager.take_updates().tolist() == [[row, 0, NULL_BLOCK], [row, 2, blocks[2]]]
    assert manager.num_used == 2
    manager.check()
    manager.free(rows(row))
    assert manager.num_used == 0


@pytest.mark.parametrize("window", [1, 3, 4, 5, 17])
@pytest.mark.parametrize("chunk", [1, 3, 4, 9])
def test_peak_blocks_bounds_what_a_windowed_sequence_holds(window: int, chunk: int) -> None:
    manager = make_manager(64, window=window)
    row, peak = started(manager, 0), 0
    for start in range(0, 54, chunk):
        assert manager.allocate(row, start, chunk)
        peak = max(peak, manager.num_used)
    bound = manager.peak_blocks(54 + chunk, chunk)
    assert peak <= bound <= peak + 1


def test_without_prefix_caching_nothing_is_kept() -> None:
    manager = make_manager(8)
    tokens = np.arange(9, dtype=np.int32)
    row = started(manager, 9)
    manager.commit(rows(row), np.tile(tokens, (NUM_ROWS, 1)), ids(9))
    manager.free(rows(row))
    assert manager.match(manager.prefix_keys(tokens, b"")) == []
    assert (manager.num_used, manager.num_cached, manager.num_available) == (0, 0, 7)


class BlockManagerMachine(RuleBasedStateMachine):
    """Random rows over one small pool; contents are modelled as (block, offset) -> token."""

    window: int | None = None
    policy = CachePolicy()

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.manager = BlockManager(
            12,
            BLOCK_SIZE,
            NUM_ROWS,
            MAX_TOKENS // BLOCK_SIZE,
            window=self.window,
            cache=self.policy,
            clock=lambda: self.now,
        )
        self.tokens: Int32 = np.zeros((NUM_ROWS, MAX_TOKENS), np.int32)
        self.computed: dict[int, int] = {}
        self.matched: dict[int, int] = {}
        self.pins: dict[str, Int32] = {}
        self.num_pins = 0
        self.memory: dict[tuple[int, int], int] = {}

    def free_rows(self) -> list[int]:
        return [row for row in range(NUM_ROWS) if row not in self.computed]

    @precondition(lambda self: self.free_rows())
    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20), priority=st.integers(-1, 1))
    def start(self, prompt: list[int], priority: int) -> None:
        row, tokens = self.free_rows()[0], ids(*prompt)
        prefix = self.manager.prefix_keys(tokens, b"")
        matched = self.manager.match(prefix)
        assert len(matched) * BLOCK_SIZE < len(tokens)
        before = self.manager.num_available
        if not self.manager.attach(row, prefix, matched, len(tokens), priority):
            assert self.manager.num_available == before
            return
        self.tokens[row, : len(tokens)] = tokens
        self.computed[row] = self.matched[row] = len(matched) * BLOCK_SIZE
        self.run(row, len(tokens) - self.computed[row])

    @precondition(lambda self: self.computed)
    @rule(data=st.data(), token=st.integers(0, 1))
    def decode(self, data: st.DataObject, token: int) -> None:
        row = data.draw(st.sampled_from(sorted(self.computed)))
        if self.computed[row] < MAX_TOKENS:
            self.tokens[row, self.computed[row]] = token
            self.run(row, 1)

    @precondition(lambda self: self.window is None)
    @rule(token=st.integers(0, 1))
    def decode_all_that_are_full(self, token: int) -> None:
        """The rows whose last block is full, in one call."""
        full = [
            row
            for row, computed in sorted(self.computed.items())
            if computed == BLOCK_SIZE * len(blocks_of(self.manager, row)) < MAX_TOKENS
        ]
        before = self.manager.num_available
        if not full:
            return
        if not self.manager.append(rows(*full)):
            assert self.manager.num_available == before < len(full)
            return
        for row in full:
            self.tokens[row, self.computed[row]] = token
            self.run(row, 1)

    @rule(seconds=st.sampled_from([1.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def run(self, row: int, num_new: int) -> None:
        start, blocks = self.computed[row], blocks_of(self.manager, row)
        if not self.manager.allocate(row, start, num_new):
            assert len(blocks_of(self.manager, row)) == len(blocks)
            return
        for source, destination in self.manager.take_copies().tolist():
            for offset in range(BLOCK_SIZE):
                self.memory[destination, offset] = self.memory.get((source, offset), -1)
        for position in range(start, start + num_new):
            index, offset = divmod(position, BLOCK_SIZE)
            self.memory[int(self.manager.tables[row, index]), offset] = self.tokens[row, position]
        self.computed[row] += num_new
        self.manager.commit(rows(row), self.tokens, ids(self.computed[row]))

    @precondition(lambda self: self.computed and self.free_rows())
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = data.draw(st.sampled_from(sorted(self.computed)))
        children = self.free_rows()[:2]
        self.manager.fork(parent, rows(*children))
        for child in children:
            self.tokens[child] = self.tokens[parent]
            self.computed[child] = self.computed[parent]
            self.matched[child] = self.matched[parent]

    @precondition(lambda self: self.computed)
    @rule(data=st.data(), retract=st.booleans())
    def free(self, data: st.DataObject, retract: bool) -> None:
        some = st.sets(st.sampled_from(sorted(self.computed)), min_size=1, max_size=3)
        chosen = sorted(data.draw(some))
        held = {row: set(blocks_of(self.manager, row)) - {NULL_BLOCK} for row in chosen}
        pinned = set(np.flatnonzero(self.manager._pins.counts).tolist())
        self.manager.free(rows(*chosen), retract=retract)
        self.forget_lost_pins(chosen if retract else [])
        for row in chosen:
            tokens = self.tokens[row, : self.computed.pop(row)]
            if retract:
                matched = self.manager.match(self.manager.prefix_keys(tokens, b""))
                assert not held[row] & (set(matched) - pinned)

    def forget_lost_pins(self, freed: list[int]) -> None:
        """Only pins with a block that a freed row may have computed itself can end with it."""
        for name in [name for name in self.pins if not self.manager.is_pinned(name)]:
            start = self.pins.pop(name)[:BLOCK_SIZE]
            authors = [row for row in freed if self.computed[row] > self.matched[row]]
            assert any(np.array_equal(self.tokens[row, :BLOCK_SIZE], start) for row in authors)

    @precondition(lambda self: self.computed)
    @rule(data=st.data(), limit=st.integers(0, 6))
    def pin(self, data: st.DataObject, limit: int) -> None:
        row = data.draw(st.sampled_from(sorted(self.computed)))
        tokens, name = self.tokens[row, : self.computed[row]].copy(), f"pin {self.num_pins}"
        before = self.manager.num_pinned, self.manager.num_available
        outcome = self.manager.pin(name, tokens, b"", limit)
        if not self.manager.is_pinned(name):
            assert (self.manager.num_pinned, self.manager.num_available) == before
            is_too_much = before[0] + outcome.num_new > limit
            assert is_too_much or not outcome.is_whole or not outcome.num_blocks
            return
        assert self.manager.num_pinned == before[0] + outcome.num_new <= limit
        self.num_pins += 1
        self.pins[name] = tokens

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pins)))
        self.manager.unpin(name)
        del self.pins[name]

    @invariant()
    def every_pin_is_found_whole(self) -> None:
        """Whatever was evicted, expired or freed; only who computed it can take it back."""
        for name, tokens in self.pins.items():
            found = self.manager.match(self.manager.prefix_keys(np.append(tokens, 0), b""))
            assert len(found) == len(tokens) // BLOCK_SIZE, name
            for index, token in enumerate(tokens[: len(found) * BLOCK_SIZE].tolist()):
                place = found[index // BLOCK_SIZE], index % BLOCK_SIZE
                assert self.memory[place] == token

    @invariant()
    def every_state_is_consistent(self) -> None:
        self.manager.check()

    @invariant()
    def every_row_still_reads_its_own_tokens(self) -> None:
        for row, num_computed in self.computed.items():
            first = 0 if self.window is None else max(0, num_computed + 1 - self.window)
            for position in range(first, num_computed):
                index, offset = divmod(position, BLOCK_SIZE)
                found = self.memory[int(self.manager.tables[row, index]), offset]
                assert found == self.tokens[row, position]

    def teardown(self) -> None:
        if self.computed:
            self.manager.free(rows(*self.computed))
        assert self.manager.num_used == 0
        self.manager.check()
        for name in self.pins:
            self.manager.unpin(name)
        assert self.manager.num_pinned == 0
        assert self.manager.num_available == self.manager.num_usable
        self.manager.check()


class EagerlyExpiringMachine(BlockManagerMachine):
    policy = parse_policy("priority-lfu", ttl_s=50.0)


class WindowedMachine(BlockManagerMachine):
    window = 6


# `--hypothesis-profile long` searches deeper, see conftest.py.
MACHINE_SETTINGS = (
    settings()
    if settings.get_current_profile_name() == "long"
    else settings(deadline=None, max_examples=40, stateful_step_count=30)
)
TestAnyTables = BlockManagerMachine.TestCase
TestAnyTables.settings = MACHINE_SETTINGS
TestAnyWindowedTables = WindowedMachine.TestCase
TestAnyWindowedTables.settings = MACHINE_SETTINGS
TestAnyPolicy = EagerlyExpiringMachine.TestCase
TestAnyPolicy.settings = MACHINE_SETTINGS
