"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's shape over the same chat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.server.anthropic_request import MessagesBody, chat_body
from hal.server.chat_turn import ChatTurn, ReadDelta, encode_turn, render_turn, start_turn
from hal.server.errors import ApiError
from hal.server.front import Front, ignored_header
from hal.server.schema import parse_body
from hal.server.stream import EventStream, unless_disconnected
from hal.server.tool_calls import CallArguments, CallStart, Content, Event, Reasoning
from hal.server.tools import ToolCall, whole_choice
from hal.server.usage import Usage
from hal.server.wire import anthropic_error, json_response

_NO_THOUGHT = {"thinking": "", "signature": ""}
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def create_message(front: Front, http: HttpRequest) -> Response:
    """Streaming and not; nothing is sent before the engine has accepted."""
    body = parse_body(await http.body(), MessagesBody)
    if body.max_tokens is None:
        raise ApiError(
            400, "missing_required_parameter", "max_tokens is required", param="max_tokens"
        )
    turn = await start_turn(front, http, chat_body(body), "msg")
    answer = _Answer(turn, front.served_name)
    headers = ignored_header(body)
    if body.stream:
        request_id = http.scope["hal_request_id"]
        return EventStream(
            answer.frames(),
            turn.generation.close,
            headers,
            done=b"",
            error_frame=lambda error: _event("error", anthropic_error(error, request_id)),
        )
    try:
        value = await unless_disconnected(http.receive, answer.whole())
    finally:
        turn.generation.close()
    return json_response(value, headers)


async def count_tokens(front: Front, http: HttpRequest) -> Response:
    """How many tokens the messages and tools are, through the model's template."""
    body = parse_body(await http.body(), MessagesBody)
    front.check_model(body.model)
    encoded = await encode_turn(front, await render_turn(front, chat_body(body)))
    return json_response({"input_tokens": len(encoded.token_ids[0])}, ignored_header(body))


def _event(name: str, value: Mapping[str, object]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"


def _usage(usage: Usage) -> dict[str, object]:
    return {
        "input_tokens": usage.num_prompt - usage.num_cached,
        "cache_read_input_tokens": usage.num_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.num_completion,
    }


@dataclass(slots=True)
class _Answer:
    """Shapes one choice as a message, whole or as a stream of content blocks."""

    turn: ChatTurn
    model: str
    _open_block: str | None = None
    _num_blocks: int = field(default=0)

    async def whole(self) -> dict[str, object]:
        (answer,) = await self.turn.whole()
        read = whole_choice(answer.events, self._call_id())
        content: list[dict[str, object]] = []
        if read.reasoning:
            content.append({"type": "thinking", "thinking": read.reasoning, "signature": ""})
        if read.content:
            content.append({"type": "text", "text": read.content})
        content += [_tool_use(call) for call in read.calls]
        return self._message(content) | self._ending(answer.end)

    async def frames(self) -> AsyncIterator[bytes]:
        yield _event("message_start", {"type": "message_start", "message": self._message([])})
        async for read in self.turn.deltas():
            for event in read.events:
                for piece in self._pieces(event):
                    yield piece
            if read.finish_reason is not None:
                ending = self._ending(read)
        for piece in self._close_block():
            yield piece
        usage = ending.pop("usage")
        yield _event("message_delta", {"type": "message_delta", "delta": ending, "usage": usage})
        yield _event("message_stop", {"type": "message_stop"})

    def _call_id(self) -> str:
        return f"toolu_{self.turn.id.partition('-')[2]}"

    def _message(self, content: Sequence[Mapping[str, object]]) -> dict[str, object]:
        return {
            "id": self.turn.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(self.turn.generation.usage),
        }

    def _ending(self, end: ReadDelta) -> dict[str, object]:
        reason, stop = end.finish_reason, end.delta.stop_reason
        is_sequence = reason == "stop" and isinstance(stop, str)
        return {
            "stop_reason": "stop_sequence" if is_sequence else _STOP_REASONS.get(reason or ""),
            "stop_sequence": stop if is_sequence else None,
            "usage": _usage(self.turn.generation.usage),
        }

    def _pieces(self, event: Event) -> list[bytes]:
        """A block's start where the event begins one, then its delta."""
        match event:
            case Reasoning(text):
                is_open = self._open_block == "thinking"
                pieces = [] if is_open else self._start(_NO_THOUGHT, "thinking")
                return [*pieces, self._delta({"type": "thinking_delta", "thinking": text})]
            case Content(text):
                pieces = [] if self._open_block == "text" else self._start({"text": ""}, "text")
                return [*pieces, self._delta({"type": "text_delta", "text": text})]
            case CallStart(index, name):
                block = {"id": f"{self._call_id()}-{index}", "name": name, "input": {}}
                return self._start(block, "tool_use")
            case CallArguments(_, text):
                return [self._delta({"type": "input_json_delta", "partial_json": text})]

    def _start(self, block: Mapping[str, object], kind: str) -> list[bytes]:
        closing = self._close_block()
        self._open_block = kind
        self._num_blocks += 1
        start = {
            "type": "content_block_start",
            "index": self._num_blocks - 1,
            "content_block": {"type": kind, **block},
        }
        return [*closing, _event("content_block_start", start)]

    def _delta(self, delta: Mapping[str, object]) -> bytes:
        value = {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}
        return _event("content_block_delta", value)

    def _close_block(self) -> list[bytes]:
        if self._open_block is None:
            return []
        self._open_block = None
        value = {"type": "content_block_stop", "index": self._num_blocks - 1}
        return [_event("content_block_stop", value)]


def _tool_use(call: ToolCall) -> dict[str, object]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": call.parsed()}
