"""The block manager against a model that keeps every table's blocks as plain sets."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hal.engine.block_manager import NULL_BLOCK, BlockCopy, BlockManager, BlockTable
from hal.errors import EngineError

BLOCK_SIZE = 4


def tokens_of(*ids: int) -> array[int]:
    return array("i", ids)


def started(manager: BlockManager, tokens: array[int], num_tokens: int) -> BlockTable:
    table = BlockTable()
    assert manager.attach(table, manager.match(table, tokens), num_tokens)
    assert manager.allocate(table, 0, num_tokens)
    return table


def test_allocation_is_all_or_nothing() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    table = started(manager, tokens_of(), 4)
    assert not manager.allocate(table, 4, 12)
    assert (table.blocks, manager.num_available) == ([table.blocks[0]], 2)
    assert manager.allocate(table, 4, 8)
    assert manager.num_available == 0
    manager.check()


def test_null_block_is_never_handed_out() -> None:
    manager = BlockManager(9, BLOCK_SIZE)
    table = started(manager, tokens_of(), 8 * BLOCK_SIZE)
    assert sorted(table.blocks) == list(range(1, 9))
    assert NULL_BLOCK not in table.blocks


def test_one_token_starts_a_block_only_at_a_boundary() -> None:
    manager = BlockManager(9, BLOCK_SIZE)
    table = started(manager, tokens_of(), 1)
    for num_computed in range(1, 9):
        assert manager.allocate(table, num_computed, 1)
        assert len(table.blocks) == num_computed // BLOCK_SIZE + 1
    assert table.unsent == [0, 1, 2]


def test_freeing_a_table_twice_raises() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    table = started(manager, tokens_of(), 5)
    manager.free(table)
    with pytest.raises(EngineError, match="holds nothing"):
        manager.free(table)
    assert manager.num_available == 3


def test_freeing_a_block_twice_raises() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    table = started(manager, tokens_of(), 4)
    table.blocks = table.blocks * 2
    with pytest.raises(EngineError, match="freed twice"):
        manager.free(table)


def test_check_sees_a_wrong_count_and_a_lost_block() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    table = started(manager, tokens_of(), 4)
    lost = table.blocks.pop()
    with pytest.raises(AssertionError, match="reference counts"):
        manager.check()
    table.blocks.append(lost)
    manager.check()
    manager._free.pop()
    with pytest.raises(AssertionError, match="no state"):
        manager.check()


def test_fork_shares_and_the_first_writer_copies() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    parent = started(manager, tokens_of(), 6)
    child = BlockTable()
    manager.fork(parent, child)
    full, partial = parent.blocks
    assert child.blocks == [full, partial]
    assert manager.num_used == 2
    parent.unsent = []
    assert manager.allocate(parent, 6, 1)
    assert parent.blocks[0] == full
    assert parent.blocks[1] != partial
    assert parent.unsent == [1]
    assert manager.allocate(child, 6, 1)
    assert child.blocks == [full, partial], "the last holder writes in place"
    assert manager.take_copies() == [BlockCopy(partial, parent.blocks[1])]
    assert manager.take_copies() == []
    manager.check()


def test_fork_at_a_block_boundary_copies_nothing() -> None:
    manager = BlockManager(8, BLOCK_SIZE)
    parent, child = started(manager, tokens_of(), 4), BlockTable()
    manager.fork(parent, child)
    assert manager.allocate(parent, 4, 1)
    assert manager.allocate(child, 4, 1)
    assert manager.take_copies() == []
    assert parent.blocks[0] == child.blocks[0]
    assert parent.blocks[1] != child.blocks[1]


def test_the_source_of_a_copy_gets_no_new_owner_in_the_same_step() -> None:
    manager = BlockManager(3, BLOCK_SIZE)
    parent, child = started(manager, tokens_of(), 2), BlockTable()
    manager.fork(parent, child)
    assert manager.allocate(parent, 2, 1)
    source = child.blocks[0]
    manager.free(child)
    manager.check()
    assert manager.num_available == 0, "the copy has not been made yet"
    assert [copy.source for copy in manager.take_copies()] == [source]
    assert manager.num_available == 1
    manager.check()


def test_a_copy_for_a_freed_table_is_dropped() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    parent, child = started(manager, tokens_of(), 2), BlockTable()
    manager.fork(parent, child)
    assert manager.allocate(parent, 2, 1)
    manager.free(parent)
    assert manager.take_copies() == []
    assert manager.num_used == 1


def test_a_failed_copy_on_write_changes_nothing() -> None:
    manager = BlockManager(2, BLOCK_SIZE)
    parent, child = started(manager, tokens_of(), 2), BlockTable()
    manager.fork(parent, child)
    assert not manager.allocate(child, 2, 1)
    assert child.blocks == parent.blocks
    assert manager.take_copies() == []
    manager.check()


def test_window_gives_back_blocks_that_no_later_query_sees() -> None:
    manager = BlockManager(9, BLOCK_SIZE, window=5)
    table = started(manager, tokens_of(), 8)
    # The query at position 8 sees 4..8; the one at 7 saw 3..7, so block 0 was needed until now.
    assert manager.allocate(table, 7, 1)
    assert table.num_trimmed == 0
    table.unsent = []
    assert manager.allocate(table, 8, 1)
    assert table.blocks[0] == NULL_BLOCK
    assert NULL_BLOCK not in table.blocks[1:]
    assert table.unsent == [0, 2]
    assert manager.num_used == 2
    manager.check()
    manager.free(table)
    assert manager.num_used == 0


@pytest.mark.parametrize("window", [1, 3, 4, 5, 17])
@pytest.mark.parametrize("chunk", [1, 3, 4, 9])
def test_peak_blocks_bounds_what_a_windowed_sequence_holds(window: int, chunk: int) -> None:
    manager = BlockManager(64, BLOCK_SIZE, window=window)
    table = BlockTable()
    assert manager.attach(table, [], 0)
    peak = 0
    for start in range(0, 60, chunk):
        assert manager.allocate(table, start, chunk)
        peak = max(peak, manager.num_used)
    bound = manager.peak_blocks(60 + chunk, chunk)
    assert peak <= bound <= peak + 1


def test_without_prefix_caching_nothing_is_kept() -> None:
    manager = BlockManager(8, BLOCK_SIZE, prefix_caching=False)
    tokens = tokens_of(*range(9))
    table = started(manager, tokens, 9)
    manager.commit(table, tokens, 9)
    manager.free(table)
    assert manager.match(BlockTable(), tokens) == []
    assert (manager.num_used, manager.num_cached, manager.num_available) == (0, 0, 7)


class BlockManagerMachine(RuleBasedStateMachine):
    """Random tables over one small pool; contents are modelled as (block, offset) -> token."""

    window: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.manager = BlockManager(12, BLOCK_SIZE, window=self.window)
        self.tables: list[BlockTable] = []
        self.tokens: dict[BlockTable, array[int]] = {}
        self.computed: dict[BlockTable, int] = {}
        self.memory: dict[tuple[int, int], int] = {}

    @rule(ids=st.lists(st.integers(0, 1), min_size=1, max_size=20))
    def start(self, ids: list[int]) -> None:
        table, tokens = BlockTable(), tokens_of(*ids)
        matched = self.manager.match(table, tokens)
        assert len(matched) * BLOCK_SIZE < len(tokens)
        before = self.manager.num_available
        if not self.manager.attach(table, matched, len(tokens)):
            assert self.manager.num_available == before
            return
        self.tables.append(table)
        self.tokens[table], self.computed[table] = tokens, len(matched) * BLOCK_SIZE
        self.run(table, len(tokens) - self.computed[table])

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), token=st.integers(0, 1))
    def decode(self, data: st.DataObject, token: int) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.tokens[table].append(token)
        if not self.run(table, 1):
            self.tokens[table].pop()

    def run(self, table: BlockTable, num_new: int) -> bool:
        start, blocks = self.computed[table], table.blocks.copy()
        if not self.manager.allocate(table, start, num_new):
            assert len(table.blocks) == len(blocks)
            return False
        for copy in self.manager.take_copies():
            for offset in range(BLOCK_SIZE):
                self.memory[copy.destination, offset] = self.memory.get((copy.source, offset), -1)
        for position in range(start, start + num_new):
            index, offset = divmod(position, BLOCK_SIZE)
            self.memory[table.blocks[index], offset] = self.tokens[table][position]
        self.computed[table] += num_new
        self.manager.commit(table, self.tokens[table], self.computed[table])
        return True

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent, child = data.draw(st.sampled_from(self.tables)), BlockTable()
        self.manager.fork(parent, child)
        self.tables.append(child)
        self.tokens[child], self.computed[child] = self.tokens[parent][:], self.computed[parent]

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), retract=st.booleans())
    def free(self, data: st.DataObject, retract: bool) -> None:
        table = data.draw(st.sampled_from(self.tables))
        blocks = table.blocks.copy()
        self.manager.free(table, retract=retract)
        self.tables.remove(table)
        if retract:
            matched = self.manager.match(BlockTable(), self.tokens[table])
            assert not set(blocks) & set(matched)

    @invariant()
    def every_state_is_consistent(self) -> None:
        self.manager.check()

    @invariant()
    def every_table_still_reads_its_own_tokens(self) -> None:
        for table in self.tables:
            num_computed = self.computed[table]
            first = 0 if self.window is None else max(0, num_computed + 1 - self.window)
            for position in range(first, num_computed):
                index, offset = divmod(position, BLOCK_SIZE)
                found = self.memory[table.blocks[index], offset]
                assert found == self.tokens[table][position]

    def teardown(self) -> None:
        for table in self.tables:
            self.manager.free(table)
        assert self.manager.num_used == 0
        self.manager.check()


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
