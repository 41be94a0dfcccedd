"""Sharing full blocks by content."""

from __future__ import annotations

from array import array

import pytest

from hal.engine.block_manager import BlockManager, BlockTable
from hal.engine.prefix_cache import DIGEST_BYTES, PrefixCache, block_digest, root_digest

BLOCK_SIZE = 4


def compute(
    manager: BlockManager, ids: range | list[int], salt: bytes = b""
) -> tuple[BlockTable, int]:
    """Run a whole prompt; returns its table and how many of its blocks were shared."""
    tokens, table = array("i", ids), BlockTable(salt=salt)
    matched = manager.match(table, tokens)
    assert manager.attach(table, matched, len(tokens))
    start = len(matched) * BLOCK_SIZE
    assert manager.allocate(table, start, len(tokens) - start)
    manager.commit(table, tokens, len(tokens))
    manager.check()
    return table, len(matched)


def test_digest_depends_on_salt_position_and_every_token() -> None:
    tokens = array("i", [1, 2, 3, 4]).tobytes()
    first = block_digest(root_digest(b""), tokens)
    assert len(first) == DIGEST_BYTES == 16
    assert first == block_digest(root_digest(b""), tokens)
    others = {
        block_digest(root_digest(b"adapter"), tokens),
        block_digest(first, tokens),
        block_digest(root_digest(b""), array("i", [1, 2, 3, 5]).tobytes()),
    }
    assert len(others | {first}) == 4


def test_ten_prompts_with_one_prefix_hold_its_blocks_once() -> None:
    manager = BlockManager(64, BLOCK_SIZE)
    tables = [compute(manager, [*range(32), 100 + i]) for i in range(10)]
    assert [shared for _, shared in tables] == [0] + [8] * 9
    assert manager.num_used == 8 + 10


def test_the_block_of_the_last_prompt_token_is_never_shared() -> None:
    manager = BlockManager(64, BLOCK_SIZE)
    compute(manager, range(8))
    assert compute(manager, range(8))[1] == 1
    assert compute(manager, range(9))[1] == 2


def test_another_salt_never_shares() -> None:
    manager = BlockManager(64, BLOCK_SIZE)
    compute(manager, range(9), salt=b"tenant a")
    assert compute(manager, range(9), salt=b"tenant b")[1] == 0
    assert compute(manager, range(9), salt=b"tenant a")[1] == 2


def test_a_block_is_shared_only_when_all_its_tokens_are_computed() -> None:
    manager = BlockManager(64, BLOCK_SIZE)
    tokens, table = array("i", range(9)), BlockTable()
    assert manager.attach(table, [], 9)
    assert manager.allocate(table, 0, 9)
    for num_computed, num_shared in ((0, 0), (3, 0), (4, 1), (7, 1), (8, 2)):
        manager.commit(table, tokens, num_computed)
        assert len(manager.match(BlockTable(), tokens)) == num_shared


def test_freed_blocks_are_found_until_they_are_needed() -> None:
    manager = BlockManager(7, BLOCK_SIZE)
    manager.free(compute(manager, range(9))[0])
    assert (manager.num_used, manager.num_cached, manager.num_available) == (0, 2, 6)
    other, _ = compute(manager, range(100, 112))
    assert manager.num_cached == 2, "free blocks go first"
    manager.free(compute(manager, range(9))[0])
    manager.free(other)
    assert compute(manager, range(9))[1] == 2


def test_the_least_recently_used_prefix_goes_first_and_from_its_end() -> None:
    manager = BlockManager(6, BLOCK_SIZE)
    for ids in (range(8), range(50, 58)):
        manager.free(compute(manager, ids)[0])
    # 4 cached, 1 free. The first prompt is used again, so the second one is older.
    manager.free(compute(manager, range(9))[0])
    compute(manager, range(100, 108))
    assert len(manager.match(BlockTable(), array("i", range(9)))) == 2
    assert len(manager.match(BlockTable(), array("i", range(50, 59)))) == 1


def test_blocks_in_use_are_never_evicted() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    held, _ = compute(manager, range(8))
    late = BlockTable()
    assert not manager.attach(late, [], 8)
    assert manager.attach(late, [], 4)
    assert manager.allocate(late, 0, 4)
    assert compute_only_match(manager, range(9)) == held.blocks


def compute_only_match(manager: BlockManager, ids: range) -> list[int]:
    return manager.match(BlockTable(), array("i", ids))


def test_a_cached_block_is_counted_once_when_it_is_both_wanted_and_the_last_room() -> None:
    manager = BlockManager(4, BLOCK_SIZE)
    manager.free(compute(manager, range(12))[0])
    assert (manager.num_available, manager.num_cached) == (3, 3)
    table, tokens = BlockTable(), array("i", range(13))
    matched = manager.match(table, tokens)
    assert len(matched) == 3
    assert not manager.attach(table, matched, 13), "3 shared blocks and no room for a fourth"
    assert manager.num_cached == 3
    manager.check()


def test_retracted_blocks_are_not_found_by_anyone() -> None:
    manager = BlockManager(64, BLOCK_SIZE)
    first, _ = compute(manager, [*range(8), 1])
    second, shared = compute(manager, [*range(8), 2])
    assert shared == 2
    manager.free(second, retract=True)
    manager.check()
    assert compute_only_match(manager, range(9)) == []
    manager.free(first)
    assert (manager.num_used, manager.num_cached) == (0, 0)


def test_a_prefix_behind_the_window_is_matched_but_not_held() -> None:
    manager = BlockManager(64, BLOCK_SIZE, window=6)
    compute(manager, range(4 * BLOCK_SIZE + 1))
    table, shared = compute(manager, range(4 * BLOCK_SIZE + 2))
    assert shared == 4
    # The query at 16 sees 11..16: blocks 0 and 1 lie wholly behind it.
    assert table.blocks[:2] == [0, 0]
    assert 0 not in table.blocks[2:]


def test_equal_blocks_computed_twice_keep_the_first_one_findable() -> None:
    cache = PrefixCache()
    cache.insert(b"x", 1)
    cache.insert(b"x", 2)
    assert cache.find(b"x") == 1
    assert not cache.holds(2)
    cache.check()


def test_check_sees_an_idle_block_that_nobody_can_find() -> None:
    cache = PrefixCache()
    cache.park(3)
    with pytest.raises(AssertionError, match="nobody can find"):
        cache.check()
