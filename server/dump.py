"""SIGUSR1: what the server is doing, on stderr; it goes on as if nothing had happened.

The stacks of all threads come first, from a signal handler in C, so that they come even where the
event loop or the engine's step hangs. Then, from the loop, the queue, every running request and the
KV blocks: ids, counts and ages, never a text. The engine process writes its own stacks.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator

from hal.server.front import Front
from hal.server.supervisor import EngineState

_MAX_REQUESTS = 1000


def dump_on_signal(front: Front) -> None:
    """From now on; to be called in the event loop."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _dump, front)
    if sys.__stderr__ is not None:
        # The loop's own handler runs behind it.
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=True, chain=True)


def _dump(front: Front) -> None:
    print("\n".join(describe(front)), file=sys.stderr, flush=True)
    process = front.engine.process
    # Before that it may not have its handler yet, and SIGUSR1 ends a process without one.
    if process.state is EngineState.READY:
        os.kill(process.pid, signal.SIGUSR1)


def describe(front: Front) -> Iterator[str]:
    """Lines for people."""
    engine, process = front.engine, front.engine.process
    yield (
        f"hal-serve dump: engine {process.state}, last heartbeat {process.heartbeat_age_s:.1f} s "
        f"ago, {'draining' if engine.is_draining else 'open'}"
    )
    admission = engine.admission
    yield f"queue: {admission.num_waiting} requests, {admission.num_waiting_tokens} prompt tokens"
    stats = engine.stats
    if stats is not None:
        held = stats.num_blocks_used + stats.num_blocks_cached + stats.num_blocks_pinned
        yield (
            f"engine: step {stats.num_steps}, {stats.num_running} running, {stats.num_waiting} "
            f"waiting, {stats.num_preemptions} preemptions"
        )
        yield (
            f"KV blocks: {stats.num_blocks_used} used, {stats.num_blocks_cached} cached, "
            f"{stats.num_blocks_pinned} pinned, {stats.num_blocks_total - held} free"
        )
    now = time.monotonic()
    running = engine.inflight()
    yield f"requests: {len(running)}"
    for one in running[:_MAX_REQUESTS]:
        yield (
            f"  {one.request_id}: {now - one.started_at:.1f} s, {one.num_prompt_tokens} prompt "
            f"tokens, {one.num_new_tokens} new of {one.max_tokens}, {one.num_open} of {one.n} "
            f"choices, {'waiting' if one.is_waiting else 'running'}"
        )
    tasks = Counter(getattr(t.get_coro(), "__qualname__", "?") for t in asyncio.all_tasks())
    yield "tasks: " + ", ".join(f"{count} {name}" for name, count in tasks.most_common())
    yield "hal-serve dump: end"
