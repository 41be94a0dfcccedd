"""Requests of the front on their way through the engine process: submit, read outputs, abort."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hal.engine.request import EngineStats, FinishReason, Output, Request
from hal.errors import TOO_LATE, GrammarError, HalError
from hal.server.admission import Admission
from hal.server.breaker import Breaker
from hal.server.errors import draining, engine_loading, engine_unavailable
from hal.server.loop_lag import LoopLag
from hal.server.messages import (
    Abort,
    Add,
    Admitted,
    FromEngine,
    Outputs,
    Pin,
    Pinned,
    Ready,
    Rejected,
    Start,
    Unpin,
)
from hal.server.pressure import Pressure
from hal.server.queue_limits import QueueLimits
from hal.server.supervisor import EngineProcess, EngineState

Sink = asyncio.Queue[Output | Exception]

_NOT_THE_ENGINES = frozenset({TOO_LATE, GrammarError.code})
"""Failed choices that say nothing about the engine's health."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InflightRequest:
    """One request inside the engine as others may see it; started_at is of the monotonic clock."""

    request_id: str
    started_at: float
    num_prompt_tokens: int
    num_new_tokens: int
    max_tokens: int
    n: int
    num_open: int
    is_waiting: bool


class _Inflight:
    """One request inside the engine; its outputs go to `sink`."""

    def __init__(self, request: Request, sink: Sink) -> None:
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sink = sink
        self.open_choices = set(range(request.params.n))
        self.started_at = time.monotonic()
        self.num_new_tokens = 0
        self._request = request

    def shown(self) -> InflightRequest:
        request = self._request
        return InflightRequest(
            request_id=request.request_id,
            started_at=self.started_at,
            num_prompt_tokens=len(request.prompt_token_ids),
            num_new_tokens=self.num_new_tokens,
            max_tokens=request.params.max_tokens or 0,
            n=request.params.n,
            num_open=len(self.open_choices),
            is_waiting=self.num_new_tokens == 0,
        )

    def put(self, output: Output) -> None:
        self.num_new_tokens += len(output.token_ids)
        if output.finish_reason is not None:
            self.open_choices.discard(output.index)
        self.sink.put_nowait(output)

    def fail(self, error: Exception) -> None:
        if self.admitted.done():
            self.sink.put_nowait(error)
        else:
            self.admitted.set_exception(error)


class AsyncEngine:
    """The engine as coroutines see it. One event loop, no locks."""

    def __init__(self, process: EngineProcess, limits: QueueLimits | None = None) -> None:
        self.process = process
        self.admission = Admission(limits)
        self.pressure = Pressure(self.admission, LoopLag())
        self.breaker = Breaker()
        self.stats: EngineStats | None = None
        self.is_draining = False
        self.ready = asyncio.Event()
        self._inflight: dict[str, _Inflight] = {}
        self._pinning: dict[str, asyncio.Future[int]] = {}
        self._serial = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_inflight(self) -> int:
        return len(self._inflight)

    def inflight(self) -> list[InflightRequest]:
        """The oldest first."""
        return [entry.shown() for entry in self._inflight.values()]

    @property
    def is_ready(self) -> bool:
        return self.process.state is EngineState.READY and not self.is_draining

    async def run(self, start: Start) -> HalError:
        """Serve until the engine fails; every request in flight has then been told."""
        failure = await self.process.run(start, self._dispatch)
        self.fail_all(failure)
        return failure

    def request_id(self, name: str) -> str:
        """Unlike any other: clients choose names, and a retry comes with the name of the first."""
        return f"{name}-{next(self._serial)}"

    async def submit(self, request: Request, sink: Sink) -> None:
        """Return once the engine has accepted; raises its RequestError or an ApiError.

        Outputs follow on `sink`; what ends it early is put there as an exception.
        """
        self.check_open()
        num_tokens = len(request.prompt_token_ids)
        self.breaker.check()
        self.admission.check(num_tokens, request.timeout_s)
        self.pressure.check(request)
        self.breaker.start(request.request_id)
        self.admission.enter(request.request_id, num_tokens)
        entry = _Inflight(request, sink)
        self._inflight[request.request_id] = entry
        self._idle.clear()
        self.process.send(Add(request))
        try:
            await entry.admitted
        except BaseException:
            self.abort(request.request_id)
            raise

    def abort(self, request_id: str) -> bool:
        """End a request wherever it is; False if it is unknown or already finished."""
        if self._forget(request_id) is None:
            return False
        self.process.send(Abort(request_id))
        return True

    def end_choice(self, request_id: str, index: int) -> None:
        """One choice needs no more tokens: its stop string was found, or it has ended itself."""
        entry = self._inflight.get(request_id)
        if entry is None:
            return
        is_running = index in entry.open_choices
        entry.open_choices.discard(index)
        if not entry.open_choices:
            self.abort(request_id)
        elif is_running:
            self.process.send(Abort(request_id, index))

    async def pin(self, name: str, token_ids: Sequence[int], tenant: str) -> int:
        """Keep the blocks of a prompt that ran, under a name of its own; returns how many tokens.

        Raises what the engine does.
        """
        return await self._pinned(Pin(name, list(token_ids), tenant))

    async def unpin(self, name: str) -> None:
        """Raises RequestError if there is no such pin."""
        await self._pinned(Unpin(name))

    async def _pinned(self, message: Pin | Unpin) -> int:
        self.check_open()
        reply = self._pinning[message.name] = asyncio.get_running_loop().create_future()
        self.process.send(message)
        try:
            num_tokens: int = await reply
        finally:
            self._pinning.pop(message.name, None)
        return num_tokens

    def fail_all(self, error: Exception) -> None:
        for request_id, entry in list(self._inflight.items()):
            self._forget(request_id)
            entry.fail(error)
        for reply in self._pinning.values():
            if not reply.done():
                reply.set_exception(error)

    async def drained(self) -> None:
        """Return when no request is in flight."""
        await self._idle.wait()

    def check_open(self) -> None:
        """Raises ApiError 503 unless requests are taken now."""
        state = self.process.state
        if state is EngineState.STARTING:
            raise engine_loading()
        if self.is_draining or state is EngineState.STOPPED:
            raise draining()
        if state is EngineState.FAILED:
            raise engine_unavailable(self.process.failure)

    def _dispatch(self, message: FromEngine) -> None:
        match message:
            case Outputs():
                self.stats = message.stats
                for output in message.outputs:
                    self._deliver(output)
            case Admitted():
                entry = self._inflight.get(message.request_id)
                if entry is not None and not entry.admitted.done():
                    entry.admitted.set_result(None)
            case Rejected():
                self._reject(message)
            case Pinned():
                reply = self._pinning.get(message.name)
                if reply is not None and not reply.done():
                    reply.set_result(message.num_tokens)
            case Ready():
                self.ready.set()

    def _reject(self, message: Rejected) -> None:
        reply = self._pinning.get(message.request_id)
        entry = self._forget(message.request_id)
        if reply is not None and not reply.done():
            reply.set_exception(message.error.to_error())
        elif entry is not None:
            entry.fail(message.error.to_error())

    def _deliver(self, output: Output) -> None:
        entry = self._inflight.get(output.request_id)
        if entry is None:
            return
        if output.token_ids or output.embedding is not None:
            self.admission.start(output.request_id)
        entry.put(output)
        if output.finish_reason is not None and output.error_code not in _NOT_THE_ENGINES:
            is_failed = output.finish_reason is FinishReason.ERROR
            self.breaker.end(output.request_id, is_failed=is_failed)
        if not entry.open_choices:
            self._forget(output.request_id)

    def _forget(self, request_id: str) -> _Inflight | None:
        entry = self._inflight.pop(request_id, None)
        self.admission.leave(request_id)
        self.breaker.leave(request_id)
        if not self._inflight:
            self._idle.set()
        return entry
