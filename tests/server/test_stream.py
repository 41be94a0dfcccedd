"""Streams never end in silence, ping while silent, and end at once when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from asgi_calls import Answer, call, scope_of
from starlette.types import Receive, Scope, Send

from hal.errors import NOT_FINITE, EngineError
from hal.server.errors import ApiError, request_lost
from hal.server.stream import DONE, PING, EventStream, frame, unless_disconnected


async def two_frames() -> AsyncIterator[bytes]:
    yield frame({"a": 1})
    yield frame({"a": 2})


class Closed:
    """Counts how often a stream was closed."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


def test_frames_then_done() -> None:
    closed = Closed()
    stream = EventStream(two_frames(), closed, {"x-hal-ignored": "b"})
    answer = asyncio.run(call(stream, scope_of("POST", "/"), ()))
    assert answer.body == b'data: {"a":1}\n\ndata: {"a":2}\n\n' + DONE
    assert answer.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert answer.headers[b"cache-control"] == b"no-cache"
    assert answer.headers[b"x-accel-buffering"] == b"no"
    assert answer.headers[b"x-hal-ignored"] == b"b"
    assert b"content-length" not in answer.headers
    assert closed.count == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (request_lost(NOT_FINITE, None), "numerical_error"),
        (EngineError("gone: pid 5"), "engine_unavailable"),
        (RuntimeError("secret"), "internal_error"),
    ],
)
def test_a_failure_is_the_last_event(error: Exception, code: str) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield frame({"a": 1})
        raise error

    closed = Closed()
    answer = asyncio.run(call(EventStream(failing(), closed, {}), scope_of("POST", "/"), ()))
    first, last, rest = answer.body.split(b"\n\n")
    assert first == b'data: {"a":1}'
    assert orjson.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert rest == b""
    assert b"secret" not in answer.body
    assert closed.count == 1


def test_pings_while_silent() -> None:
    async def run() -> Answer:
        may_end = asyncio.Event()

        async def silent() -> AsyncIterator[bytes]:
            await may_end.wait()
            yield frame({"a": 1})

        def leaves_when(answer: Answer) -> bool:
            if answer.body.count(PING) == 2:
                may_end.set()
            return False

        stream = EventStream(silent(), Closed(), {}, ping_interval_s=0.01)
        return await call(stream, scope_of("POST", "/"), (), leaves_when)

    assert asyncio.run(run()).body == PING * 2 + b'data: {"a":1}\n\n' + DONE


def test_the_source_is_cancelled_when_the_client_leaves() -> None:
    closed, cancelled = Closed(), []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield frame({"a": 1})
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            cancelled.append(closed.count)
            raise

    stream = EventStream(endless(), closed, {})
    with pytest.raises(ApiError) as caught:
        asyncio.run(
            call(stream, scope_of("POST", "/"), (), lambda answer: len(answer.messages) > 3)
        )
    assert caught.value.status == 499
    assert cancelled == [0]  # the source had stopped before `close` ran
    assert closed.count == 1


def test_work_is_cancelled_when_the_client_leaves() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            steps.append("cleaned up")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, work())
        finally:
            steps.append("left")

    with pytest.raises(ApiError):
        asyncio.run(call(app, scope_of("POST", "/"), (), lambda answer: True))
    assert steps == ["cleaned up", "left"]


def test_the_result_or_error_of_work_passes() -> None:
    async def one() -> int:
        return 1

    async def fails() -> int:
        raise ValueError("no")

    results: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        results.append(await unless_disconnected(receive, one()))
        await unless_disconnected(receive, fails())

    with pytest.raises(ValueError, match="no"):
        asyncio.run(call(app, scope_of("POST", "/"), ()))
    assert results == [1]
