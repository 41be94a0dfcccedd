"""A log line every ten seconds in which something was done: what operators look at first."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from hal.engine.request import EngineStats
from hal.server.async_engine import AsyncEngine

_INTERVAL_S = 10.0
_FIRST_INTERVAL_S = 0.5
TEXT = (
    "%(generated_tokens_per_s)s generated tok/s, %(prompt_tokens_per_s)s prompt tok/s, "
    "%(running)s running, %(waiting)s waiting, %(kv_used_percent)s %% of KV blocks used, "
    "%(prompt_cached_percent)s %% of prompt tokens cached, %(preemptions)s preemptions"
)

_log = logging.getLogger("hal.server.stats")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counts of the engine at a moment of the monotonic clock."""

    at_s: float
    stats: EngineStats


async def log_stats(engine: AsyncEngine) -> None:
    """Until cancelled."""
    while engine.stats is None:
        await asyncio.sleep(_FIRST_INTERVAL_S)
    before = Snapshot(time.monotonic(), engine.stats)
    while True:
        await asyncio.sleep(_INTERVAL_S)
        now = Snapshot(time.monotonic(), engine.stats)
        if before.stats.num_steps != now.stats.num_steps:
            fields = between(before, now)
            _log.info(TEXT, fields, extra={"hal": fields})
        before = now


def between(before: Snapshot, now: Snapshot) -> dict[str, float | int]:
    """Rates since `before`, and how things stand."""
    seconds = max(now.at_s - before.at_s, 1e-9)
    old, new = before.stats, now.stats
    queries = new.num_prefix_queries - old.num_prefix_queries
    hits = new.num_prefix_hits - old.num_prefix_hits
    generated = new.num_generated_tokens - old.num_generated_tokens
    prompt = new.num_prompt_tokens - old.num_prompt_tokens
    return {
        "generated_tokens_per_s": round(generated / seconds, 1),
        "prompt_tokens_per_s": round(prompt / seconds, 1),
        "running": new.num_running,
        "waiting": new.num_waiting,
        "kv_used_percent": round(100 * new.num_blocks_used / max(new.num_blocks_total, 1), 1),
        "prompt_cached_percent": round(100 * hits / queries, 1) if queries else 0.0,
        "preemptions": new.num_preemptions - old.num_preemptions,
    }
