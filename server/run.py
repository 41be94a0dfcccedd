"""One server from start to exit: HTTP listener, engine process, tokenizer, signals, hand-over.

Exit codes: 0 after a drain (SIGTERM, Ctrl-C while serving, or another server that took over); 130
for Ctrl-C while loading or a second one while draining; the failure's own code otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn

from hal.errors import HalError, RequestError
from hal.server.app import build_app
from hal.server.dump import dump_on_signal
from hal.server.errors import ApiError, draining
from hal.server.front import Front
from hal.server.hand_over import Offer, TakeOver
from hal.server.key_usage import UsageFile
from hal.server.messages import Start
from hal.server.params import MAX_PRIORITY
from hal.server.stats_line import log_stats
from hal.server.text import TextModel

EXIT_INTERRUPTED = 128 + signal.SIGINT

_CONNECTIONS_INTERVAL_S = 0.05
_FLUSH_TIMEOUT_S = 5
"""How long answers may take to reach slow clients when the server ends."""
# Our own limit answers 431 below this; beyond it the parser answers a plain 400.
_MAX_REQUEST_HEAD_BYTES = 128 * 2**10

_log = logging.getLogger("hal.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to serve one Front.

    host: as the user gave it; a server that takes over finds this one by it
    open_usage: opens what keeps the use of keys, which raises ConfigError; None forgets it
    """

    start: Start
    load_text: Callable[[], TextModel]
    on_ready: Callable[[Front], None]
    host: str
    shutdown_timeout_s: float = 30.0
    open_usage: Callable[[], UsageFile] | None = None


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


class _Http:
    """The HTTP side: open once, closed once."""

    def __init__(self, front: Front) -> None:
        self._server = _HttpServer(_uvicorn_config(front))
        self._serving: asyncio.Task[None] | None = None

    @property
    def num_connections(self) -> int:
        return len(self._server.server_state.connections)

    def open(self, listener: socket.socket) -> None:
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))

    def stop_accepting(self) -> None:
        for server in self._server.servers:
            server.close()

    async def close(self) -> None:
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


async def serve(front: Front, door: socket.socket | TakeOver, options: RunOptions) -> int:
    """Serve until a signal, or another server takes over; returns the exit code.

    door: a socket that listens, opened at once; or the server to take it from once this is ready
    Raises the HalError that ended it otherwise.
    """
    return await _Serving(front, options).run(door)


class _Serving:
    """The life of one server."""

    def __init__(self, front: Front, options: RunOptions) -> None:
        self._front = front
        self._options = options
        self._stop = _Stop()
        self._http = _Http(front)
        self._open_files = contextlib.AsyncExitStack()
        self._left = asyncio.Event()
        self._offering: asyncio.Task[None] | None = None

    async def run(self, door: socket.socket | TakeOver) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.receive, number)
        dump_on_signal(self._front)
        engine = self._front.engine
        running = asyncio.create_task(engine.run(self._options.start))
        watching = [
            asyncio.create_task(engine.pressure.lag.watch()),
            asyncio.create_task(log_stats(engine)),
        ]
        async with self._open_files:
            try:
                if isinstance(door, socket.socket):
                    await self._open(door)
                return await self._until_stopped(running, door)
            finally:
                await self._http.close()
                for task in (running, *watching):
                    task.cancel()
                await engine.process.stop()
                if self._offering is not None:
                    self._offering.cancel()
                if self._front.spans is not None:
                    await asyncio.to_thread(self._front.spans.close)

    async def _open(self, listener: socket.socket) -> None:
        """Take requests, and offer the socket to whoever comes to take it over."""
        options = self._options
        if options.open_usage is not None:
            usage = options.open_usage()
            await self._open_files.enter_async_context(usage.kept(self._front.quotas))
        self._http.open(listener)
        offer = Offer(options.host, listener)
        self._offering = asyncio.create_task(offer.wait(self._front.hot_prefixes, self._leave))

    async def _leave(self) -> None:
        """Another server has the socket: stop accepting, and let it count the use of keys."""
        self._http.stop_accepting()
        await self._open_files.aclose()
        self._front.is_leaving = True
        self._left.set()

    async def _until_stopped(
        self, engine: asyncio.Task[HalError], door: socket.socket | TakeOver
    ) -> int:
        stop = self._stop
        stopping = asyncio.create_task(stop.requested.wait())
        leaving = asyncio.create_task(self._left.wait())
        loading = asyncio.create_task(self._load(door))
        # When both sides fail at once one error is enough; the other must not be logged as lost.
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        for stage in (loading, None):
            awaited: set[asyncio.Task[object]] = {engine, stopping, leaving}
            awaited |= {stage} if stage else set()
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if engine.done():
                raise engine.result()
            if stopping.done() or leaving.done():
                break
            if stage is not None:
                stage.result()
        if not self._front.is_ready:
            loading.cancel()
            return EXIT_INTERRUPTED if stop.signal == signal.SIGINT else 0
        if leaving.done() and not stopping.done():
            await self._until_connections_end(engine, stopping)
        return await self._drain(engine)

    async def _load(self, door: socket.socket | TakeOver) -> None:
        """The tokenizer loads while the engine process loads the weights."""
        front = self._front
        front.text = await asyncio.to_thread(self._options.load_text)
        await front.engine.ready.wait()
        if isinstance(door, TakeOver):
            await self._take_over(door)
        self._options.on_ready(front)

    async def _take_over(self, old: TakeOver) -> None:
        front = self._front
        assert front.text is not None
        fingerprint = await asyncio.to_thread(front.text.tokenizer.fingerprint)
        prefixes = await old.prefixes(fingerprint)
        for prefix in prefixes:
            try:
                name = front.engine.request_id("hand-over")
                await front.compute(name, prefix.token_ids, prefix.tenant, MAX_PRIORITY)
            except (ApiError, RequestError) as error:  # this context may be shorter
                _log.info("a prefix of %d tokens: %s", len(prefix.token_ids), error)
        await self._open(await old.listener())
        _log.info("took over from pid %d; %d prefixes are in the cache", old.pid, len(prefixes))
        old.close()

    async def _until_connections_end(
        self, engine: asyncio.Task[HalError], stopping: asyncio.Task[object]
    ) -> None:
        """They are still served, and closed behind their next answer or when they fall idle."""
        _log.warning(
            "another server has taken over: %d connections end here", self._http.num_connections
        )
        deadline = time.monotonic() + self._options.shutdown_timeout_s
        while self._http.num_connections and time.monotonic() < deadline:
            if engine.done() or stopping.done():
                return
            await asyncio.sleep(_CONNECTIONS_INTERVAL_S)

    async def _drain(self, engine: asyncio.Task[HalError]) -> int:
        """Refuse new requests, let running ones finish, then end the rest with an error event."""
        front, stop, timeout_s = self._front, self._stop, self._options.shutdown_timeout_s
        front.engine.is_draining = front.is_leaving = True
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
