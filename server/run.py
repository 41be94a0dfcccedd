"""One server from start to exit: HTTP listener, engine process, tokenizer, signals.

Exit codes: 0 after a drain (SIGTERM, or Ctrl-C while serving); 130 for Ctrl-C while loading or a
second one while draining; the failure's own code otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from hal.errors import HalError
from hal.server.app import build_app
from hal.server.dump import dump_on_signal
from hal.server.errors import draining
from hal.server.front import Front
from hal.server.messages import Start
from hal.server.stats_line import log_stats
from hal.server.text import TextModel

EXIT_INTERRUPTED = 128 + signal.SIGINT

_FLUSH_TIMEOUT_S = 5
"""How long answers may take to reach slow clients when the server ends."""
# Our own limit answers 431 below this; beyond it the parser answers a plain 400.
_MAX_REQUEST_HEAD_BYTES = 128 * 2**10

_log = logging.getLogger("hal.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to serve one Front."""

    start: Start
    load_text: Callable[[], TextModel]
    on_ready: Callable[[Front], None]
    shutdown_timeout_s: float = 30.0


class _HttpServer(uvicorn.Server):
    """Leaves signals to us: they must drain the engine first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Stop:
    """The first signal asks for a drain, the second for an end at once."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()
        self.signal = signal.SIGTERM

    def receive(self, number: signal.Signals) -> None:
        self.signal = number
        if self.requested.is_set():
            self.forced.set()
        self.requested.set()


async def serve(front: Front, listener: socket.socket, options: RunOptions) -> int:
    """Serve until a signal; returns the exit code. Raises the HalError that ended it otherwise."""
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.receive, number)
    dump_on_signal(front)
    server = _HttpServer(_uvicorn_config(front))
    http = asyncio.create_task(server.serve(sockets=[listener]))
    engine = asyncio.create_task(front.engine.run(options.start))
    watching = [
        asyncio.create_task(front.loop_lag.watch()),
        asyncio.create_task(log_stats(front.engine)),
    ]
    try:
        return await _until_stopped(front, engine, stop, options)
    finally:
        server.should_exit = True
        await http
        for task in watching:
            task.cancel()
        engine.cancel()
        await front.engine.process.stop()
        if front.spans is not None:
            await asyncio.to_thread(front.spans.close)


async def _until_stopped(
    front: Front, engine: asyncio.Task[HalError], stop: _Stop, options: RunOptions
) -> int:
    stopping = asyncio.create_task(stop.requested.wait())
    loading = asyncio.create_task(_load(front, options))
    # When both sides fail at once one error is enough; the other must not be logged as lost.
    loading.add_done_callback(lambda task: task.cancelled() or task.exception())
    for stage in (loading, None):
        awaited: set[asyncio.Task[object]] = {engine, stopping, *([stage] if stage else [])}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if engine.done():
            raise engine.result()
        if stopping.done():
            break
        if stage is not None:
            stage.result()
    if not front.is_ready:
        loading.cancel()
        return EXIT_INTERRUPTED if stop.signal == signal.SIGINT else 0
    return await _drain(front, engine, stop, options.shutdown_timeout_s)


async def _load(front: Front, options: RunOptions) -> None:
    """The tokenizer loads while the engine process loads the weights."""
    front.text = await asyncio.to_thread(options.load_text)
    await front.engine.ready.wait()
    options.on_ready(front)


async def _drain(
    front: Front, engine: asyncio.Task[HalError], stop: _Stop, timeout_s: float
) -> int:
    """Refuse new requests, let running ones finish, then end the rest with an error event."""
    front.engine.is_draining = True
    if front.engine.num_inflight:
        _log.warning(
            "stopping: waiting up to %g s for %d running requests; Ctrl-C again stops now",
            timeout_s,
            front.engine.num_inflight,
        )
    drained = asyncio.create_task(front.engine.drained())
    forced = asyncio.create_task(stop.forced.wait())
    await asyncio.wait(
        {drained, forced, engine}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
    )
    drained.cancel()
    forced.cancel()
    if engine.done():
        raise engine.result()
    front.engine.fail_all(draining())
    if stop.forced.is_set() and stop.signal == signal.SIGINT:
        return EXIT_INTERRUPTED
    return 0


def _uvicorn_config(front: Front) -> uvicorn.Config:
    # h11: the strictest parser of those uvicorn has (it refuses what httptools lets through).
    return uvicorn.Config(
        build_app(front),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_REQUEST_HEAD_BYTES,
        timeout_graceful_shutdown=_FLUSH_TIMEOUT_S,
    )
