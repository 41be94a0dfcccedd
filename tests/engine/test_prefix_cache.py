"""Sharing full blocks by content, and which of them are given up first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from hal.cache_policy import CachePolicy, parse_policy
from hal.engine.batch import Index, Int32
from hal.engine.block_manager import BlockManager
from hal.engine.prefix_cache import EvictionReason, PrefixCache
from hal.engine.prefix_hash import PrefixHasher, keys_of
from hal.errors import ConfigError

BLOCK_SIZE = 4
SECRET = bytes(range(32))
Ids = Sequence[int]


class Pool(BlockManager):
    """A manager with a clock of its own, and the tokens of its rows."""

    def __init__(
        self, num_blocks: int, policy: CachePolicy | None = None, window: int | None = None
    ) -> None:
        self.now = 0.0
        super().__init__(
            num_blocks,
            BLOCK_SIZE,
            16,
            16,
            window=window,
            cache=policy or CachePolicy(),
            clock=lambda: self.now,
            secret=SECRET,
        )
        self.tokens = np.zeros((16, 64), np.int32)
        self.unused = list(range(16))

    def compute(self, ids: Ids, *, salt: bytes = b"", priority: int = 0) -> tuple[int, int]:
        """Run a whole prompt; its row and how many of its blocks were shared."""
        tokens, row = np.array(ids, np.int32), self.unused.pop(0)
        prefix = self.prefix_keys(tokens, salt)
        matched = self.match(prefix)
        assert self.attach(row, prefix, matched, len(tokens), priority)
        start = len(matched) * BLOCK_SIZE
        assert self.allocate(row, start, len(tokens) - start)
        self.tokens[row, : len(tokens)] = tokens
        self.commit(rows(row), self.tokens, as_array(len(tokens)))
        self.check()
        return row, len(matched)

    def drop(self, row: int, *, retract: bool = False) -> None:
        self.free(rows(row), retract=retract)
        self.unused.append(row)
        self.check()

    def use(self, ids: Ids, *, priority: int = 0) -> int:
        """Compute a prompt and free it again; how many of its blocks were shared."""
        row, shared = self.compute(ids, priority=priority)
        self.drop(row)
        return shared

    def blocks_of(self, row: int) -> list[int]:
        blocks: list[int] = self.tables[row, : self.num_table_blocks[row]].tolist()
        return blocks

    def found(self, ids: Ids) -> list[int]:
        return self.match(self.prefix_keys(np.array(ids, np.int32), b""))


def as_array(*values: int) -> Int32:
    return np.array(values, np.int32)


def rows(*numbers: int) -> Index:
    return np.array(numbers, np.intp)


def test_key_depends_on_secret_salt_position_and_every_token() -> None:
    tokens = as_array(1, 2, 3, 4, 1, 2, 3, 4)
    hasher = PrefixHasher(SECRET, BLOCK_SIZE)
    first, second = hasher.prefix(tokens, b"").keys
    assert len(first) == 16
    assert first == PrefixHasher(SECRET, BLOCK_SIZE).prefix(tokens[:4], b"").keys[0]
    others = {
        second,
        *PrefixHasher(SECRET[::-1], BLOCK_SIZE).prefix(tokens, b"").keys,
        *hasher.prefix(tokens, b"adapter").keys,
        *hasher.prefix(as_array(1, 2, 3, 5), b"").keys,
        *hasher.prefix(as_array(0, 0, 0, 0, 0, 0, 0, 0), b"").keys,
    }
    assert len(others | {first}) == 9


def test_key_is_the_multilinear_hash_of_its_definition() -> None:
    """In plain integers, from the same key stream."""
    from hashlib import blake2b, shake_256

    tokens = np.random.default_rng(0).integers(0, 2**31 - 1, 12)
    stream = shake_256(SECRET).digest(12 * 4 * 8)
    multipliers = [int.from_bytes(stream[i : i + 8], "little") for i in range(0, len(stream), 8)]
    root = blake2b(b"salt", digest_size=32, key=SECRET).digest()
    expected = []
    for end in (4, 8, 12):
        key = b""
        for lane in range(4):
            total = int.from_bytes(root[8 * lane : 8 * lane + 8], "little")
            for i in range(end):
                total += multipliers[4 * i + lane] * (int(tokens[i]) + 1)
            key += (total % 2**64 >> 32).to_bytes(4, "little")
        expected.append(key)
    hasher = PrefixHasher(SECRET, BLOCK_SIZE)
    assert hasher.prefix(tokens.astype(np.int32), b"salt").keys == expected


def test_blocks_hashed_as_they_fill_get_the_keys_of_the_whole_prompt() -> None:
    tokens = np.random.default_rng(1).integers(0, 1000, 40).astype(np.int32)
    hasher = PrefixHasher(SECRET, BLOCK_SIZE)
    whole = hasher.prefix(tokens, b"x")
    sums = hasher.sums(tokens.reshape(10, BLOCK_SIZE), np.arange(10, dtype=np.int32))
    chained = whole.state_after(3) + sums[3]
    assert keys_of(chained[None]) == [whole.keys[3]]
    assert keys_of(whole.state_after(0)[None] + sums[:1]) == [whole.keys[0]]


def test_ten_prompts_with_one_prefix_hold_its_blocks_once() -> None:
    pool = Pool(64)
    shared = [pool.compute([*range(32), 100 + i])[1] for i in range(10)]
    assert shared == [0] + [8] * 9
    assert pool.num_used == 8 + 10


def test_the_block_of_the_last_prompt_token_is_never_shared() -> None:
    pool = Pool(64)
    pool.compute(range(8))
    assert pool.compute(range(8))[1] == 1
    assert pool.compute(range(9))[1] == 2


def test_another_salt_never_shares() -> None:
    pool = Pool(64)
    pool.compute(range(9), salt=b"tenant a")
    assert pool.compute(range(9), salt=b"tenant b")[1] == 0
    assert pool.compute(range(9), salt=b"tenant a")[1] == 2


def test_a_block_is_shared_only_when_all_its_tokens_are_computed() -> None:
    pool, tokens = Pool(64), np.arange(9, dtype=np.int32)
    prefix = pool.prefix_keys(tokens, b"")
    assert pool.attach(0, prefix, [], 9)
    assert pool.allocate(0, 0, 9)
    pool.tokens[0, :9] = tokens
    for num_computed, num_shared in ((0, 0), (3, 0), (4, 1), (7, 1), (8, 2)):
        pool.commit(rows(0), pool.tokens, as_array(num_computed))
        assert len(pool.match(prefix)) == num_shared


def test_rows_of_one_commit_chain_each_on_their_own() -> None:
    pool = Pool(64)
    prompts = [list(range(9)), [7] * 17, list(range(100, 103)), [*range(8), 50, 51, 52, 53]]
    for row, prompt in enumerate(prompts):
        assert pool.attach(row, pool.prefix_keys(as_array(), b""), [], len(prompt))
        assert pool.allocate(row, 0, len(prompt))
        pool.tokens[row, : len(prompt)] = prompt
    lengths = as_array(*map(len, prompts))
    pool.commit(rows(0, 1, 2, 3), pool.tokens, lengths // 2)
    pool.commit(rows(0, 1, 2, 3), pool.tokens, lengths)
    pool.check()
    assert [len(pool.found([*prompt, 0])) for prompt in prompts] == [2, 4, 0, 3]


def test_freed_blocks_are_found_until_they_are_needed() -> None:
    pool = Pool(7)
    pool.use(range(9))
    assert (pool.num_used, pool.num_cached, pool.num_available) == (0, 2, 6)
    other, _ = pool.compute(range(100, 112))
    assert pool.num_cached == 2, "free blocks go first"
    pool.use(range(9))
    pool.drop(other)
    assert pool.compute(range(9))[1] == 2


def test_the_least_recently_used_prefix_goes_first_and_from_its_end() -> None:
    pool = Pool(6)
    for ids in (range(8), range(50, 58)):
        pool.use(ids)
    # 4 cached, 1 free. The first prompt is used again, so the second one is older.
    pool.use(range(9))
    pool.compute(range(100, 108))
    assert len(pool.found(range(9))) == 2
    assert len(pool.found(range(50, 59))) == 1
    assert pool.evictions == {EvictionReason.CAPACITY: 1}


def test_the_least_frequently_used_prefix_goes_first() -> None:
    pool = Pool(6, parse_policy("lfu", math.inf))
    for _ in range(3):
        pool.use(range(9))
    pool.use(range(50, 58))  # newer, but used once
    pool.compute(range(100, 108))
    assert len(pool.found(range(9))) == 2
    assert len(pool.found(range(50, 59))) == 1


def test_old_hits_count_less_and_less() -> None:
    pool = Pool(4, parse_policy("lfu", math.inf))
    for _ in range(5):
        pool.use(range(5))
    for number in range(20):
        pool.use(range(100 * number + 100, 100 * number + 109))
    assert pool.found(range(5)) == [], "five hits of long ago pin nothing"


def test_a_tier_outlives_all_less_urgent_ones_whatever_their_use() -> None:
    pool = Pool(6, parse_policy("priority-lru", math.inf))
    pool.use(range(8), priority=-1)
    pool.use(range(50, 58), priority=0)
    pool.use(range(50, 59), priority=0)
    pool.compute(range(100, 108), priority=5)
    assert len(pool.found(range(9))) == 2
    assert len(pool.found(range(50, 59))) == 1


def test_a_shared_block_is_of_the_tier_of_its_most_urgent_user() -> None:
    pool = Pool(6, parse_policy("priority-lru", math.inf))
    pool.use(range(8), priority=3)
    pool.use(range(9), priority=-1)
    pool.use(range(50, 58), priority=0)
    pool.compute(range(100, 108))
    assert len(pool.found(range(9))) == 2
    assert len(pool.found(range(50, 59))) == 1


@pytest.mark.parametrize("name", ["lru", "lfu", "priority-lru", "priority-lfu"])
def test_an_expired_prefix_is_not_found_and_its_blocks_are_free(name: str) -> None:
    pool = Pool(64, parse_policy(name, 60.0))
    pool.use(range(9))
    pool.now = 30.0
    pool.use(range(50, 59), priority=4)
    pool.now = 59.0
    assert len(pool.found(range(9))) == 2
    pool.now = 60.0
    assert pool.found(range(9)) == []
    assert pool.num_cached == 2
    assert len(pool.found(range(50, 59))) == 2
    assert pool.evictions == {EvictionReason.EXPIRED: 2}
    pool.now = 80.0
    pool.use(range(50, 59))
    pool.now = 139.0
    assert len(pool.found(range(50, 59))) == 2, "its time counts from its last use"
    pool.check()


def test_expired_blocks_go_before_living_ones_of_lower_tiers() -> None:
    pool = Pool(6, parse_policy("priority-lru", 60.0))
    pool.use(range(8), priority=-9)
    pool.now = 50.0
    pool.use(range(50, 58), priority=9)
    pool.now = 70.0
    pool.compute(range(100, 112))
    assert pool.evictions == {EvictionReason.EXPIRED: 2}
    assert len(pool.found(range(50, 59))) == 2


def test_a_clock_that_goes_back_makes_nothing_older() -> None:
    pool = Pool(64, parse_policy("lru", 60.0))
    pool.now = 100.0
    pool.use(range(9))
    pool.now = -1e9
    pool.use(range(50, 59))
    pool.check()
    pool.now = 159.0
    assert len(pool.found(range(50, 59))) == 2
    pool.now = 160.0
    assert pool.found(range(50, 59)) == []


@pytest.mark.parametrize(("name", "ttl_s"), [("fifo", 1.0), ("lru", 0.0), ("lru", math.nan)])
def test_a_policy_that_is_none_is_refused(name: str, ttl_s: float) -> None:
    with pytest.raises(ConfigError, match="fifo.*lru, lfu|above 0"):
        parse_policy(name, ttl_s)


def test_blocks_in_use_are_never_evicted() -> None:
    pool = Pool(4)
    held, _ = pool.compute(range(8))
    late = pool.prefix_keys(as_array(), b"")
    assert not pool.attach(9, late, [], 8)
    assert pool.attach(9, late, [], 4)
    assert pool.allocate(9, 0, 4)
    assert pool.found(range(9)) == pool.blocks_of(held)


def test_a_cached_block_is_counted_once_when_it_is_both_wanted_and_the_last_room() -> None:
    pool = Pool(4)
    pool.use(range(12))
    assert (pool.num_available, pool.num_cached) == (3, 3)
    prefix = pool.prefix_keys(np.arange(13, dtype=np.int32), b"")
    matched = pool.match(prefix)
    assert len(matched) == 3
    assert not pool.attach(0, prefix, matched, 13), "3 shared blocks and no room for a fourth"
    assert pool.num_cached == 3
    pool.check()


def test_retracted_blocks_are_not_found_by_anyone() -> None:
    pool = Pool(64)
    first, _ = pool.compute([*range(8), 1])
    second, shared = pool.compute([*range(8), 2])
    assert shared == 2
    pool.drop(second, retract=True)
    assert pool.found(range(9)) == []
    pool.drop(first)
    assert (pool.num_used, pool.num_cached) == (0, 0)


def test_a_prefix_behind_the_window_is_matched_but_not_held() -> None:
    pool = Pool(64, window=6)
    pool.compute(range(4 * BLOCK_SIZE + 1))
    row, shared = pool.compute(range(4 * BLOCK_SIZE + 2))
    assert shared == 4
    # The query at 16 sees 11..16: blocks 0 and 1 lie wholly behind it.
    blocks = pool.blocks_of(row)
    assert blocks[:2] == [0, 0]
    assert 0 not in blocks[2:]


def test_equal_blocks_computed_twice_keep_the_first_one_findable() -> None:
    cache = PrefixCache(4)
    assert cache.insert([b"x", b"x"], [1, 2], [0, 0], [0, 0]) == [1]
    assert cache.find([b"x", b"y"]) == [1]
    assert not cache.holds(2)
    cache.check()


def test_a_wrong_guess_of_what_follows_a_block_finds_nothing_wrong() -> None:
    """Two prefixes part after x; each look-up leaves the guess that misleads the next one."""
    cache = PrefixCache(8)
    cache.insert([b"x", b"xa", b"xb", b"y"], [1, 2, 3, 4], [0] * 4, [0, 1, 1, 0])
    for _ in range(2):
        assert cache.find([b"x", b"xa", b"xaa"]) == [1, 2]
        assert cache.find([b"x", b"xb"]) == [1, 3]
        assert cache.find([b"x", b"xc"]) == [1]
        assert cache.find([b"y", b"xa"]) == [4, 2]
    cache.forget([2])
    assert cache.find([b"x", b"xa"]) == [1]
    cache.insert([b"z"], [2], [0], [1])
    assert cache.find([b"x", b"xa"]) == [1]
    assert cache.find([b"x", b"z"]) == [1, 2]
    cache.check()


def test_check_sees_an_idle_block_that_nobody_can_find() -> None:
    cache = PrefixCache(4)
    cache.park([3])
    with pytest.raises(AssertionError, match="nobody can find"):
        cache.check()
