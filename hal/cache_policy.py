"""Which cached prefix is given up first, as --cache-policy and --cache-ttl say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hal.errors import ConfigError

DEFAULT_TTL_S = 3600.0


class CacheOrder(StrEnum):
    """Which idle block of a tier goes first."""

    LRU = "lru"
    LFU = "lfu"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """has_tiers: blocks of less urgent requests go before all of more urgent ones.

    ttl_s: seconds after its last use at which an idle block is no longer found; inf = never.
    """

    order: CacheOrder = CacheOrder.LRU
    has_tiers: bool = False
    ttl_s: float = DEFAULT_TTL_S


POLICY_NAMES = ("lru", "lfu", "priority-lru", "priority-lfu")


def parse_policy(name: str, ttl_s: float) -> CachePolicy:
    """Raises ConfigError for an unknown name or a TTL that is no positive number of seconds."""
    if name not in POLICY_NAMES:
        raise ConfigError(f"cache policy {name!r} is unknown; choose {', '.join(POLICY_NAMES)}")
    if not ttl_s > 0:
        raise ConfigError(f"the cache's TTL must be above 0 seconds; got {ttl_s}")
    return CachePolicy(
        order=CacheOrder(name.removeprefix("priority-")),
        has_tiers=name.startswith("priority-"),
        ttl_s=ttl_s,
    )
