"""One request to an ASGI application without a socket; the client can leave at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import orjson
from starlette.types import ASGIApp, Message, Scope

Headers = Iterable[tuple[bytes, bytes]]

HOST: tuple[bytes, bytes] = (b"host", b"localhost:8000")
JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")


@dataclass(slots=True)
class Answer:
    """What the application has sent so far."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> dict[str, object]:
        found = orjson.loads(self.body)["error"]
        assert isinstance(found, dict)
        return found


def scope_of(method: str, path: str, headers: Headers = (HOST, JSON)) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": list(headers),
        "scheme": "http",
        "server": ("127.0.0.1", 8000),
    }


async def call(
    app: ASGIApp,
    scope: Scope,
    body: Iterable[bytes] = (b"",),
    leaves_when: Callable[[Answer], bool] = lambda answer: False,
) -> Answer:
    """Send the request with `body` in parts; the client leaves when `leaves_when` says so."""
    answer = Answer()
    parts = list(body)
    changed = asyncio.Event()

    async def receive() -> Message:
        if parts:
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}
        while not leaves_when(answer):
            await changed.wait()
            changed.clear()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answer.messages.append(message)
        changed.set()

    changed.set()
    await app(scope, receive, send)
    return answer
