"""What share of a trace's prompt blocks each cache policy would have found.

A line has `prompt_token_ids`, or `hash_ids` (one id per block that stands for all tokens up to its
end, as in the Mooncake traces), and may have `timestamp` (seconds), `priority` and `tenant`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hal.cache_policy import POLICY_NAMES, CachePolicy, parse_policy
from hal.cli.bench.trace_file import Line, Lines
from hal.engine.prefix_cache import EvictionReason, PrefixCache
from hal.engine.prefix_hash import KEY_BYTES, PrefixHasher

BAR_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's full blocks by key."""

    at_s: float
    keys: list[bytes]
    priority: int


@dataclass(slots=True)
class Replay:
    """A cache of `num_blocks` that requests use one after another, each for a moment."""

    num_blocks: int
    policy: CachePolicy
    num_found: int = 0
    num_asked: int = 0
    now: float = 0.0

    def run(self, prompts: list[Prompt]) -> PrefixCache:
        cache = PrefixCache(self.num_blocks, self.policy, lambda: self.now)
        free = list(range(self.num_blocks))
        for prompt in prompts:
            self.now = prompt.at_s
            free += cache.expire()
            self._use(cache, free, prompt)
        return cache

    def _use(self, cache: PrefixCache, free: list[int], prompt: Prompt) -> None:
        """Take what is there, make the rest, and let go of all, its end first."""
        keys = prompt.keys[: self.num_blocks]
        found = cache.find(keys)
        self.num_found += len(found)
        self.num_asked += len(prompt.keys)
        cache.count_hits(found, prompt.priority)
        cache.unpark(found)
        num_missing = len(keys) - len(found)
        if num_missing > len(free):
            free += cache.evict(num_missing - len(free))
        made = [free.pop() for _ in range(num_missing)]
        priorities = [prompt.priority] * num_missing
        before = [*(found[-1:] or [0]), *made][:num_missing]
        kept = cache.insert(keys[len(found) :], made, priorities, before)
        free += sorted(set(made) - set(kept))
        cache.park([*found, *kept][::-1])


def print_replays(lines: Lines, sizes: list[int], block_size: int, ttl_s: float) -> None:
    """A row for each policy and size of the pool."""
    prompts = read_prompts(lines, block_size)
    print(f"{len(prompts)} requests, {sum(len(p.keys) for p in prompts)} full blocks")
    print(f"{'policy':14}{'blocks':>10}{'hit rate':>10}{'evicted':>10}{'expired':>10}")
    for size in sizes:
        for name in POLICY_NAMES:
            replay = Replay(size, parse_policy(name, ttl_s))
            evictions = replay.run(prompts).evictions
            rate = replay.num_found / max(replay.num_asked, 1)
            print(
                f"{name:14}{size:>10}{rate:>10.1%}{evictions[EvictionReason.CAPACITY]:>10}"
                f"{evictions[EvictionReason.EXPIRED]:>10}  {'#' * round(BAR_WIDTH * rate)}"
            )


def read_prompts(lines: Lines, block_size: int) -> list[Prompt]:
    """Raises ConfigError for a line that has no prompt."""
    hasher = PrefixHasher(bytes(KEY_BYTES), block_size)
    return [
        Prompt(
            at_s=line.number_of("timestamp", 0.0),
            keys=_keys(line, hasher),
            priority=int(line.number_of("priority", 0)),
        )
        for line in lines
    ]


def _keys(line: Line, hasher: PrefixHasher) -> list[bytes]:
    tenant = str(line.fields.get("tenant", "")).encode()
    if "hash_ids" in line.fields:
        salt = hasher.root(tenant).tobytes()[:8]
        return [salt + item.to_bytes(8, "little") for item in line.ids_of("hash_ids")]
    tokens = line.ids_of("prompt_token_ids")
    if max(tokens, default=0) >= 2**31:
        raise line.wrong("has a token id of 2^31 or more")
    return hasher.prefix(np.array(tokens, np.int32), tenant).keys
