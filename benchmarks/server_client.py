"""A client that costs little: one connection for each request, so that thousands can be opened."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Answer:
    """What came back; seconds since the request was sent.

    tokens_at: when each event of a stream came
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    tokens_at: list[float] = field(default_factory=list)
    seconds: float = 0.0
    is_whole: bool = False


async def ask(
    port: int,
    method: str,
    path: str,
    body: bytes = b"",
    *,
    leave_after: int | None = None,
    key: str | None = None,
) -> Answer:
    """One request to its end, or until so many events have come: then the connection is cut.

    Raises OSError where the connection breaks.
    """
    answer, started_at = Answer(), time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        writer.write(_head(method, path, len(body), key) + body)
        if leave_after == 0:
            return answer
        await _read_head(reader, answer)
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                answer.tokens_at.append(time.monotonic() - started_at)
                if len(answer.tokens_at) == leave_after:
                    return answer
            answer.is_whole |= line.startswith(b"data: [DONE]")
        return answer
    finally:
        answer.seconds = time.monotonic() - started_at
        writer.close()


def completion(prompt: str, num_tokens: int, **fields: object) -> bytes:
    """A streamed request that generates exactly so many tokens."""
    body = {"prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, "stream": True}
    return json.dumps({**body, **fields}).encode()


def _head(method: str, path: str, num_bytes: int, key: str | None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    if method != "GET":
        lines += ["Content-Type: application/json", f"Content-Length: {num_bytes}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def _read_head(reader: asyncio.StreamReader, answer: Answer) -> None:
    status = await reader.readline()
    if not status:
        raise ConnectionResetError("closed without an answer")
    answer.status = int(status.split()[1])
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        answer.headers[name.lower()] = value.strip()
