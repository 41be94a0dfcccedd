"""Server-sent events: frames, pings while silent, an error event instead of a silent end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hal.server.errors import ApiError, api_error
from hal.server.facts import RequestFacts, facts_of

PING_INTERVAL_S = 15.0
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

Answer = TypeVar("Answer")

_log = logging.getLogger("hal.server")


def frame(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def _openai_error(error: ApiError) -> bytes:
    return frame(error.body())


class EventStream(StreamingResponse):
    """Sends frames until they end, the client leaves, or they raise; then calls `close` once."""

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        close: Callable[[], None],
        headers: Mapping[str, str],
        ping_interval_s: float = PING_INTERVAL_S,
        *,
        done: bytes = DONE,
        error_frame: Callable[[ApiError], bytes] = _openai_error,
    ) -> None:
        super().__init__(
            frames,
            headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers},
            media_type="text/event-stream",
        )
        self._frames = frames
        self._close = close
        self._ping_interval_s = ping_interval_s
        self._sent_at = time.monotonic()
        self._done = done
        self._facts = RequestFacts()
        self._error_frame = error_frame

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._facts = facts_of(scope)
        self._facts.is_stream = True
        try:
            await unless_disconnected(receive, self._send_all(send))
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        pings = asyncio.create_task(self._send_pings(send))
        try:
            async for chunk in self._with_ending():
                self._sent_at = time.monotonic()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        finally:
            pings.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def _with_ending(self) -> AsyncIterator[bytes]:
        """The frames, then [DONE] where the API has it, or the error as the last event."""
        try:
            async for chunk in self._frames:
                yield chunk
        except Exception as error:  # noqa: BLE001 a stream never ends in silence
            answer = api_error(error)
            if answer.status == 500 and not isinstance(error, ApiError):
                _log.exception("a stream failed")
            self._facts.error_code = answer.code
            yield self._error_frame(answer)
        else:
            if self._done:
                yield self._done

    async def _send_pings(self, send: Send) -> None:
        """Keep proxies from closing a stream that is silent, as during a long prefill."""
        while True:
            silent_s = time.monotonic() - self._sent_at
            if silent_s >= self._ping_interval_s:
                self._sent_at, silent_s = time.monotonic(), 0.0
                await send({"type": "http.response.body", "body": PING, "more_body": True})
            await asyncio.sleep(self._ping_interval_s - silent_s)


async def unless_disconnected(receive: Receive, work: Awaitable[Answer]) -> Answer:
    """Await `work`, but cancel it when the client leaves; raises ApiError 499 then.

    The body must have been read: the next message can only be the disconnect.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "client_closed_request", "the client has closed the connection")
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            # Its own clean-up must be over before ours begins.
            await asyncio.wait({working})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
