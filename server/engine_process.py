"""The engine's process: messages between steps, one frame of outputs per step.

Main thread: build, add, abort, step. One thread reads the socket, one sends heartbeats. The
process ignores SIGINT and SIGTERM (a terminal or an init system signals the whole group, while
the front still drains) and ends when its parent does.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn, Protocol

from hal.engine.request import EngineStats, FinishReason, Output, Request
from hal.errors import RANK_LOST, EngineError, HalError, RequestError, UnsupportedError
from hal.parent_process import die_with_parent
from hal.server.messages import (
    HEARTBEAT_INTERVAL_S,
    Abort,
    Add,
    Admitted,
    EngineInfo,
    ErrorRecord,
    Failed,
    FromEngine,
    Heartbeat,
    Outputs,
    Pin,
    Pinned,
    Ready,
    Rejected,
    Start,
    Unpin,
    decode_to_engine,
    encode_frame,
    receive_frame,
    request_id_of,
)

MAX_FAILED_STEPS = 3
"""In a row: then the device is taken for broken and the process ends."""


class StepEngine(Protocol):
    """What the process needs of an engine; hal.engine.engine.Engine is one."""

    @property
    def has_work(self) -> bool: ...

    def prepare(self, request: Request) -> None:
        """What takes long of `add`, from another thread; raises what add does."""

    def add(self, request: Request) -> None: ...

    def abort(self, request_id: str, index: int | None = None) -> object: ...

    def pin(self, name: str, token_ids: Sequence[int], tenant: str) -> int:
        """Tokens kept; raises RequestError."""

    def unpin(self, name: str) -> None: ...

    def step(self) -> Sequence[Output]: ...

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that can step, and what users are told about it.

    watch: calls what it is given, from another thread, when the engine has lost a part of itself
    """

    engine: StepEngine
    info: EngineInfo
    watch: Callable[[Callable[[HalError], None]], None] | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that can be added now, or why it cannot."""

    request: Request
    error: Exception | None


Build = Callable[[Start], LoadedEngine]


def run_engine_process(fd: int, parent_pid: int, build: Build) -> int:
    """Serve the engine on the inherited socket `fd`; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the front passes on its own
    die_with_parent(parent_pid)  # elsewhere the closed socket ends it
    return EngineLoop(socket.socket(fileno=fd)).run(build)


class EngineLoop:
    """Owns the connection and drives one engine until the front is gone or the engine fails."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._send_lock = threading.Lock()
        self._inbox: queue.SimpleQueue[bytes | _Prepared | HalError] = queue.SimpleQueue()
        self._preparing: set[str] = set()
        self._preparer = ThreadPoolExecutor(1, "prepare")
        self._num_steps = 0
        self._num_failed_steps = 0
        self._is_busy = True

    def run(self, build: Build) -> int:
        threading.Thread(target=self._read_frames, name="reader", daemon=True).start()
        threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()
        try:
            first = self._inbox.get()
            assert isinstance(first, bytes)
            start = decode_to_engine(first)
            assert isinstance(start, Start), start
            loaded = build(start)
            self._send(Ready(loaded.info))
            if loaded.watch is not None:
                loaded.watch(self._inbox.put)
            self._drive(loaded.engine)
        except HalError as error:
            self._send(Failed(ErrorRecord.of(error)))
            return error.exit_code
        except Exception as error:  # noqa: BLE001 a bug: its place is worth a traceback
            traceback.print_exc()
            failure = EngineError(f"the engine stopped on {type(error).__name__}: {error}")
            self._send(Failed(ErrorRecord.of(failure)))
            return failure.exit_code

    def _drive(self, engine: StepEngine) -> NoReturn:
        while True:
            if not engine.has_work:
                self._send(Outputs([], engine.stats()))
                self._is_busy = False
                self._handle(engine, self._inbox.get())
                self._is_busy = True
            while not self._inbox.empty():
                self._handle(engine, self._inbox.get())
            if engine.has_work:
                outputs = self._step(engine)
                self._send(Outputs(list(outputs), engine.stats()))

    def _step(self, engine: StepEngine) -> Sequence[Output]:
        """One step. The requests of a failed one are told in the next; many failures are fatal, and
        one that took a rank is."""
        try:
            outputs = engine.step()
        except EngineError as error:
            self._num_failed_steps += 1
            if self._num_failed_steps == MAX_FAILED_STEPS or error.code == RANK_LOST:
                raise
            _report(error)
            outputs = []
        else:
            if any(output.finish_reason is not FinishReason.ERROR for output in outputs):
                self._num_failed_steps = 0
        self._num_steps += 1
        return outputs

    def _handle(self, engine: StepEngine, item: bytes | _Prepared | HalError) -> None:
        if isinstance(item, HalError):
            raise item
        if isinstance(item, _Prepared):
            self._add_prepared(engine, item)
            return
        try:
            message = decode_to_engine(item)
        except RequestError as error:
            self._send(Rejected(request_id_of(item), ErrorRecord.of(error)))
            return
        if isinstance(message, Add) and message.request.params.guided_decoding is not None:
            self._preparing.add(message.request.request_id)
            self._preparer.submit(self._prepare, engine, message.request)
        elif isinstance(message, Add):
            self._add(engine, message.request)
        elif isinstance(message, Abort):
            self._preparing.discard(message.request_id)
            engine.abort(message.request_id, message.index)
        elif isinstance(message, Pin | Unpin):
            self._pin(engine, message)

    def _prepare(self, engine: StepEngine, request: Request) -> None:
        """In a thread: the steps of others go on while a grammar is compiled."""
        error: Exception | None = None
        try:
            engine.prepare(request)
        except Exception as caught:  # noqa: BLE001 raised again in the main thread
            error = caught
        self._inbox.put(_Prepared(request, error))

    def _add_prepared(self, engine: StepEngine, prepared: _Prepared) -> None:
        request, error = prepared.request, prepared.error
        if request.request_id not in self._preparing:
            return  # aborted meanwhile
        self._preparing.discard(request.request_id)
        if error is None:
            self._add(engine, request)
        elif isinstance(error, HalError):
            self._send(Rejected(request.request_id, ErrorRecord.of(error)))
        else:
            raise error

    def _add(self, engine: StepEngine, request: Request) -> None:
        try:
            engine.add(request)
        except (RequestError, UnsupportedError) as error:
            self._send(Rejected(request.request_id, ErrorRecord.of(error)))
        else:
            self._send(Admitted(request.request_id))

    def _pin(self, engine: StepEngine, message: Pin | Unpin) -> None:
        num_tokens = 0
        try:
            if isinstance(message, Pin):
                num_tokens = engine.pin(message.name, message.token_ids, message.tenant)
            else:
                engine.unpin(message.name)
        except RequestError as error:
            self._send(Rejected(message.name, ErrorRecord.of(error)))
        else:
            self._send(Pinned(message.name, num_tokens))

    def _send(self, message: FromEngine) -> None:
        frame = encode_frame(message)
        try:
            with self._send_lock:
                self._connection.sendall(frame)
        except OSError:
            _exit_without_parent()

    def _read_frames(self) -> None:
        while True:
            try:
                payload = receive_frame(self._connection)
            except OSError:
                payload = None
            if payload is None:
                _exit_without_parent()
            else:
                self._inbox.put(payload)

    def _send_heartbeats(self) -> None:
        pause = threading.Event()
        while not pause.wait(HEARTBEAT_INTERVAL_S):
            self._send(Heartbeat(self._num_steps, self._is_busy))


def _report(error: EngineError) -> None:
    """Into the log: the sizes of a full device say all, the place of a bug does not stand in it."""
    if isinstance(error.__cause__, HalError):
        print(f"hal-engine: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


def _exit_without_parent() -> None:
    """The front has closed the connection: nobody can be told anything, nothing is kept."""
    sys.stderr.flush()
    os._exit(0)
