"""What the block manager costs per block, per cached token and per victim, and in bytes."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hal.cache_policy import CachePolicy, parse_policy
from hal.engine.block_manager import BlockManager
from hal.engine.prefix_cache import PrefixCache

Tokens = NDArray[np.int32]

BLOCK_SIZE = 16
BLOCKS_PER_ROW = 64
PROMPT_BLOCKS = (16, 60)  # of the prompts that are looked up
VICTIMS_PER_CALL = 64


def _manager(num_rows: int, *, spare: int = 3, cache: CachePolicy | None = None) -> BlockManager:
    """Rows of BLOCKS_PER_ROW blocks, and room for `spare` more each."""
    width = BLOCKS_PER_ROW + spare
    return BlockManager(num_rows * width + 1, BLOCK_SIZE, 2 * num_rows, width, cache=cache)


def _ns(start: int, count: int) -> float:
    return (time.thread_time_ns() - start) / count


def block_ns(num_blocks: int) -> dict[str, float]:
    """Nanoseconds per block of each operation on `num_blocks` blocks in rows of BLOCKS_PER_ROW."""
    num_rows = num_blocks // BLOCKS_PER_ROW
    manager = _manager(num_rows)
    nothing = manager.prefix_keys(np.empty(0, np.int32), b"")
    num_tokens = BLOCKS_PER_ROW * BLOCK_SIZE
    start = time.thread_time_ns()
    for row in range(num_rows):
        manager.attach(row, nothing, [], num_tokens)
        manager.allocate(row, 0, num_tokens)
    costs = {"allocate": _ns(start, num_blocks)}
    manager.take_updates()
    rows = np.arange(num_rows)
    start = time.thread_time_ns()
    for _ in range(3):
        assert manager.append(rows)
        manager.take_updates()
    costs["append"] = _ns(start, 3 * num_rows)
    start = time.thread_time_ns()
    for row in range(num_rows):
        manager.fork(row, rows[row : row + 1] + num_rows)
    costs["fork"] = _ns(start, num_rows * (BLOCKS_PER_ROW + 3))
    start = time.thread_time_ns()
    for first in range(0, 2 * num_rows, num_rows):
        manager.free(rows + first)
    costs["free"] = _ns(start, 2 * num_rows * (BLOCKS_PER_ROW + 3))
    manager.check()
    return costs


def cached_manager(num_blocks: int) -> tuple[BlockManager, Tokens]:
    """A pool whose blocks are all cached and idle, and the tokens of its rows."""
    num_rows = num_blocks // BLOCKS_PER_ROW
    manager = _manager(num_rows, spare=1, cache=CachePolicy(ttl_s=math.inf))
    rng = np.random.default_rng(0)
    length = BLOCKS_PER_ROW * BLOCK_SIZE
    tokens = rng.integers(0, 100_000, (num_rows, length), np.int32)
    nothing = manager.prefix_keys(np.empty(0, np.int32), b"")
    for row in range(num_rows):
        manager.attach(row, nothing, [], length)
        manager.allocate(row, 0, length)
    rows = np.arange(num_rows)
    for part in np.array_split(rows, max(1, num_rows // 256)):
        manager.commit(part, tokens, np.full(len(part), length, np.int32))
    manager.take_updates()
    manager.free(rows)
    return manager, tokens


def match_ns(manager: BlockManager, tokens: Tokens, prompt_blocks: int) -> float:
    """Nanoseconds per cached token to hash a prompt and to find its blocks."""
    rng, num_prompts = np.random.default_rng(1), 2000
    length = prompt_blocks * BLOCK_SIZE + 1
    prompts = [tokens[row, :length] for row in rng.integers(0, len(tokens), num_prompts)]
    start = time.thread_time_ns()
    found = [len(manager.match(manager.prefix_keys(prompt, b""))) for prompt in prompts]
    cost = _ns(start, num_prompts * prompt_blocks * BLOCK_SIZE)
    assert set(found) == {prompt_blocks}
    return cost


def eviction_ns(num_blocks: int, policy_name: str, num_victims: int) -> float:
    """Nanoseconds per victim, chosen and forgotten, of `num_blocks` idle blocks."""
    cache = PrefixCache(num_blocks, parse_policy(policy_name, 3600.0))
    keys = [number.to_bytes(16, "little") for number in range(num_blocks)]
    blocks = list(range(num_blocks))
    cache.insert(keys, blocks, [number % 4 for number in blocks], [0] * num_blocks)
    rng = np.random.default_rng(0)
    for _ in range(3):
        cache.count_hits(rng.integers(0, num_blocks, num_blocks // 2).tolist(), 5)
    order = rng.permutation(num_blocks).tolist()
    for first in range(0, num_blocks, 64):
        cache.park(order[first : first + 64])
    start = time.thread_time_ns()
    for _ in range(num_victims // VICTIMS_PER_CALL):
        cache.evict(VICTIMS_PER_CALL)
    return _ns(start, num_victims // VICTIMS_PER_CALL * VICTIMS_PER_CALL)


def metadata_bytes(num_blocks: int) -> float:
    """Bytes per block of a pool whose blocks are all cached, tables included."""
    gc.collect()
    tracemalloc.start()
    manager, tokens = cached_manager(num_blocks)
    size = tracemalloc.get_traced_memory()[0] - tokens.nbytes
    tracemalloc.stop()
    return size / manager.num_usable


def sizes(largest: int) -> Iterator[int]:
    """1k, 10k, ... blocks."""
    size = 1024
    while size <= largest:
        yield size
        size *= 10
