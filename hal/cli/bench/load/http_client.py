"""HTTP/1.1 for many streams at little cost: h11 (uvicorn's own parser) on asyncio's sockets.

A general client spends more on one streamed token than a fast server does. This one keeps
connections alive, reads what has arrived, and hands it on; it knows no proxies and no redirects.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

from hal.errors import ConfigError

MAX_BODY_BYTES = 2**20
_READ_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens; `path` is in front of every route."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def target_of(url: str) -> Target:
    """Raises ConfigError. A trailing /v1 is left off: the routes have it."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is not a URL as http://127.0.0.1:8000")
    path = parts.path.rstrip("/").removesuffix("/v1")
    default = 443 if parts.scheme == "https" else 80
    return Target(parts.scheme, parts.hostname, port or default, path)


class CutOff(Exception):
    """The server closed the connection before its answer was complete."""


@dataclass(slots=True)
class Answer:
    """The head of a response; `chunks` yields its body as it arrives, once."""

    status: int
    headers: dict[str, str]
    chunks: AsyncIterator[bytes]

    async def body(self) -> bytes:
        """What is beyond MAX_BODY_BYTES is not read."""
        body = b""
        async for chunk in self.chunks:
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                break
        return body


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    parser: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))

    async def next_event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self.parser.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]  # NEED_DATA has its own type
            self.parser.receive_data(await self.reader.read(_READ_BYTES))

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            event = await self.next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise CutOff

    @property
    def is_reusable(self) -> bool:
        parser = self.parser
        return parser.our_state is h11.DONE and parser.their_state is h11.DONE


class HttpClient:
    """Requests to one server over as many connections as run at once; close() when done."""

    def __init__(self, target: Target, headers: dict[str, str]) -> None:
        self.target = target
        host = target.url.split("://", 1)[1].removesuffix(target.path)
        self._headers = {"host": host, "accept": "*/*", **headers}
        self._tls = ssl.create_default_context() if target.scheme == "https" else None
        self._idle: list[_Connection] = []

    @asynccontextmanager
    async def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> AsyncIterator[Answer]:
        """Send and read the head. Raises OSError, CutOff or h11.RemoteProtocolError."""
        connection, answer = await self._answer(method, path, body, headers or {})
        try:
            yield answer
        finally:
            if connection.is_reusable:
                connection.parser.start_next_cycle()
                self._idle.append(connection)
            else:
                connection.writer.close()

    async def close(self) -> None:
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()

    async def _answer(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[_Connection, Answer]:
        while self._idle:
            connection = self._idle.pop()
            try:
                return connection, await self._exchange(connection, method, path, body, headers)
            except (OSError, CutOff, h11.RemoteProtocolError):
                # Closed by the server while it was idle: the request was not read.
                connection.writer.close()
            except BaseException:
                connection.writer.close()
                raise
        target = self.target
        streams = await asyncio.open_connection(target.host, target.port, ssl=self._tls)
        connection = _Connection(*streams)
        try:
            return connection, await self._exchange(connection, method, path, body, headers)
        except BaseException:
            connection.writer.close()
            raise

    async def _exchange(
        self,
        connection: _Connection,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
    ) -> Answer:
        sent = {**self._headers, **headers}
        if body:
            sent |= {"content-type": "application/json", "content-length": str(len(body))}
        head = h11.Request(
            method=method, target=self.target.path + path, headers=list(sent.items())
        )
        parts = [connection.parser.send(head)]
        if body:
            parts.append(connection.parser.send(h11.Data(data=body)))
        parts.append(connection.parser.send(h11.EndOfMessage()))
        connection.writer.write(b"".join(part for part in parts if part))
        await connection.writer.drain()
        event = await connection.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = await connection.next_event()
        if not isinstance(event, h11.Response):
            raise CutOff
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        return Answer(event.status_code, found, connection.chunks())
