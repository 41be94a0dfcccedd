"""One streamed request: what is sent, and when each piece of the answer arrived."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import h11
import orjson

from hal.cli.bench.load.http_client import Answer, CutOff, HttpClient

Json = dict[str, object]

_MAX_LINE_BYTES = 2**24
_MAX_DETAIL_CHARS = 300


class Api(StrEnum):
    """Values of --api."""

    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        return "/v1/completions" if self is Api.COMPLETIONS else "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How every request of a run looks; exact_length: ask the server to ignore the end of text."""

    api: Api
    model: str
    exact_length: bool = True
    temperature: float | None = None

    def body(self, prompt: str | Sequence[int], max_tokens: int) -> bytes:
        body: Json = {
            "model": self.model,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.api is Api.CHAT:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.exact_length:
            body["ignore_eos"] = True
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return orjson.dumps(body)


@dataclass(slots=True)
class Record:
    """One request; times are seconds of one clock, gaps seconds between pieces of text.

    due_s: when it should have been sent; everything is measured from there
    possible_s: when the limit on requests at once let it; sent later is the generator's fault
    error: why it failed; "" where it did not. detail: what the server said about it
    output_tokens: as the server counted them, or else pieces of text
    """

    due_s: float
    possible_s: float
    sent_s: float = 0.0
    first_s: float | None = None
    ended_s: float = 0.0
    gaps: array[float] = field(default_factory=lambda: array("d"))
    num_pieces: int = 0
    prompt_tokens: int | None = None
    output_tokens: int = 0
    cached_tokens: int = 0
    is_counted: bool = False
    error: str = ""
    detail: str = ""

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def e2el_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for an answer of one token."""
        if self.first_s is None or self.output_tokens < 2:
            return None
        return (self.ended_s - self.first_s) / (self.output_tokens - 1)


class ServerError(Exception):
    """The server answered with an error: what kind, of which there are few, and its own words."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.detail = detail[:_MAX_DETAIL_CHARS]


async def ask(
    client: HttpClient, style: Style, record: Record, body: bytes, timeout_s: float
) -> None:
    """Send and read to the end; what happened is in `record`, failures too."""
    record.sent_s = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            async with client.request("POST", style.api.path, body) as answer:
                await _read(answer, record)
    except TimeoutError:
        record.error = f"no end within {timeout_s:g} s"
    except ServerError as error:
        record.error, record.detail = str(error), error.detail
    except (CutOff, h11.ProtocolError):
        record.error = "the server closed the connection"
    except OSError as error:
        record.error = f"connection: {error.strerror or error}"
    finally:
        record.ended_s = (
            time.perf_counter() if record.error or not record.ended_s else record.ended_s
        )
        if not record.is_counted:
            record.output_tokens = record.num_pieces


async def _read(answer: Answer, record: Record) -> None:
    if answer.status != 200:
        raise refusal(answer.status, await answer.body())
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        raise ServerError("the answer is no event stream: does the server stream?")
    is_finished = is_done = False
    last_s = 0.0
    async for data in events(answer.chunks):
        now = time.perf_counter()
        if data == b"[DONE]":
            is_done = True
            continue
        event = _object(data)
        has_text, ends = _piece(event)
        if has_text:
            if record.first_s is None:
                record.first_s = now
            else:
                record.gaps.append(now - last_s)
            last_s = record.ended_s = now
            record.num_pieces += 1
        if ends:
            is_finished, record.ended_s = True, now
        _count(event.get("usage"), record)
    if not (is_done or is_finished):
        raise ServerError("the stream ended without a finish_reason or [DONE]")


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event; comments and other fields are left out."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise ServerError(f"a line of more than {_MAX_LINE_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def refusal(status: int, body: bytes) -> ServerError:
    """The status with the code that the body has, if any."""
    try:
        error = _object(body).get("error")
    except ServerError:
        return ServerError(f"HTTP {status}")
    if not isinstance(error, dict):
        return ServerError(f"HTTP {status}", str(error or ""))
    kind = f"HTTP {status} {error.get('code') or error.get('type') or ''}".rstrip()
    return ServerError(kind, str(error.get("message") or ""))


def _object(data: bytes) -> Json:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ServerError("an event is not JSON") from error
    if not isinstance(value, dict):
        raise ServerError("an event is no JSON object")
    return value


def _piece(event: Json) -> tuple[bool, bool]:
    """Whether an event has text of the answer, and whether it ends it; raises its error."""
    if "error" in event and event["error"]:
        error = event["error"]
        code = error.get("code") or error.get("type") if isinstance(error, dict) else error
        raise ServerError(f"error event {code}")
    choices = event.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False, False
    choice = choices[0]
    delta = choice.get("delta")
    source = delta if isinstance(delta, dict) else choice
    has_text = any(source.get(name) for name in _TEXT_FIELDS)
    return has_text, choice.get("finish_reason") is not None


_TEXT_FIELDS = ("text", "content", "reasoning_content", "reasoning", "tool_calls")


def _count(usage: object, record: Record) -> None:
    if not isinstance(usage, dict):
        return
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(output, int):
        record.prompt_tokens, record.output_tokens, record.is_counted = prompt, output, True
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    record.cached_tokens = cached if isinstance(cached, int) else 0
