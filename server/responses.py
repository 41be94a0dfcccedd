"""POST /v1/responses: OpenAI's newer shape over the same chat. Nothing is stored."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.errors import RequestError
from hal.server.chat_turn import ChatTurn, start_turn
from hal.server.errors import ApiError
from hal.server.front import Front, ignored_header
from hal.server.responses_request import ResponsesBody, chat_body, under_its_name
from hal.server.schema import parse_body
from hal.server.stream import EventStream, unless_disconnected
from hal.server.tool_calls import CallArguments, CallStart, Content, Event, Reasoning
from hal.server.usage import Usage
from hal.server.wire import json_response

Fields = dict[str, object]

_MESSAGE, _REASONING, _CALL = "message", "reasoning", "function_call"
_ID_PREFIXES = {_MESSAGE: "msg", _REASONING: "rs", _CALL: "fc"}


async def create_response(front: Front, http: HttpRequest) -> Response:
    """Streaming and not; nothing is sent before the engine has accepted."""
    body = parse_body(await http.body(), ResponsesBody)
    try:
        turn = await start_turn(front, http, chat_body(body), "resp")
    except (ApiError, RequestError) as error:
        raise under_its_name(error) from error
    answer = _Answer(turn, front.served_name, body)
    headers = ignored_header(body)
    if body.stream:
        return EventStream(
            answer.frames(),
            turn.generation.close,
            headers,
            done=b"",
            error_frame=answer.error_frame,
        )
    try:
        value = await unless_disconnected(http.receive, answer.whole())
    finally:
        turn.generation.close()
    return json_response(value, headers)


@dataclass(slots=True)
class _Item:
    """One item of the output while it grows; `name` is that of a call."""

    id: str
    index: int
    type: str
    name: str = ""
    texts: list[str] = field(default_factory=list)

    def as_json(self, status: str) -> Fields:
        text = "".join(self.texts)
        fields: Fields = {"id": self.id, "type": self.type, "status": status}
        content = [_part(self.type, text)] if text else []
        if self.type == _MESSAGE:
            return {**fields, "role": "assistant", "content": content}
        if self.type == _REASONING:
            return {**fields, "summary": [], "content": content}
        return {**fields, "call_id": f"call_{self.id}", "name": self.name, "arguments": text}

    def place(self) -> Fields:
        place: Fields = {"item_id": self.id, "output_index": self.index}
        return place if self.type == _CALL else {**place, "content_index": 0}


def _part(item_type: str, text: str) -> Fields:
    if item_type == _REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


@dataclass(slots=True)
class _Answer:
    """Shapes one choice as a response, whole or as a stream of typed events."""

    turn: ChatTurn
    model: str
    body: ResponsesBody
    created: int = field(default_factory=lambda: int(time.time()))
    _items: list[_Item] = field(default_factory=list)
    _is_open: bool = False
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def whole(self) -> Fields:
        (answer,) = await self.turn.whole()
        for event in answer.events:
            list(self._pieces(event))
        return self._response(_status(answer.end.finish_reason))

    async def frames(self) -> AsyncIterator[bytes]:
        for name in ("response.created", "response.in_progress"):
            yield self._frame(name, {"response": self._response("in_progress")})
        reason: str | None = None
        async for read in self.turn.deltas():
            reason = read.finish_reason
            for event in read.events:
                for name, fields in self._pieces(event):
                    yield self._frame(name, fields)
        status = _status(reason)
        for name, fields in self._close_item(status):
            yield self._frame(name, fields)
        yield self._frame(f"response.{status}", {"response": self._response(status)})

    def error_frame(self, error: ApiError) -> bytes:
        fields = {"code": error.code, "message": error.message, "param": error.param}
        return self._frame("error", fields)

    def _frame(self, name: str, fields: Mapping[str, object]) -> bytes:
        value = {"type": name, "sequence_number": next(self._numbers), **fields}
        return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"

    def _pieces(self, event: Event) -> Iterator[tuple[str, Fields]]:
        """Events of the stream with their fields."""
        match event:
            case Reasoning(text):
                yield from self._add_text(_REASONING, text)
                yield "response.reasoning_text.delta", {**self._items[-1].place(), "delta": text}
            case Content(text):
                yield from self._add_text(_MESSAGE, text)
                fields: Fields = {**self._items[-1].place(), "delta": text, "logprobs": []}
                yield "response.output_text.delta", fields
            case CallStart(_, name):
                yield from self._open_item(_CALL, name)
            case CallArguments(_, text):
                self._items[-1].texts.append(text)
                fields = {**self._items[-1].place(), "delta": text}
                yield "response.function_call_arguments.delta", fields

    def _add_text(self, item_type: str, text: str) -> Iterator[tuple[str, Fields]]:
        if not self._is_open or self._items[-1].type != item_type:
            yield from self._open_item(item_type)
            part = {"part": _part(item_type, "")}
            yield "response.content_part.added", {**self._items[-1].place(), **part}
        self._items[-1].texts.append(text)

    def _open_item(self, item_type: str, name: str = "") -> Iterator[tuple[str, Fields]]:
        yield from self._close_item("completed")
        index, job = len(self._items), self.turn.id.partition("-")[2]
        item = _Item(f"{_ID_PREFIXES[item_type]}_{job}_{index}", index, item_type, name)
        self._items.append(item)
        self._is_open = True
        added: Fields = {"output_index": index, "item": item.as_json("in_progress")}
        yield "response.output_item.added", added

    def _close_item(self, status: str) -> Iterator[tuple[str, Fields]]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        text, place = "".join(item.texts), item.place()
        if item.type == _CALL:
            done: Fields = {**place, "name": item.name, "arguments": text}
            yield "response.function_call_arguments.done", done
        elif item.type == _REASONING:
            yield "response.reasoning_text.done", {**place, "text": text}
        else:
            yield "response.output_text.done", {**place, "text": text, "logprobs": []}
        if item.type != _CALL:
            yield "response.content_part.done", {**place, "part": _part(item.type, text)}
        whole: Fields = {"output_index": item.index, "item": item.as_json(status)}
        yield "response.output_item.done", whole

    def _response(self, status: str) -> Fields:
        body, is_over = self.body, status != "in_progress"
        is_cut = status == "incomplete"
        last = len(self._items) - 1
        return {
            "id": self.turn.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": {},
            "model": self.model,
            "output": [
                item.as_json(status if item.index == last else "completed") for item in self._items
            ],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": _usage(self.turn.generation.usage) if is_over else None,
        }


def _status(reason: str | None) -> str:
    return "incomplete" if reason == "length" else "completed"


def _usage(usage: Usage) -> Fields:
    return {
        "input_tokens": usage.num_prompt,
        "input_tokens_details": {"cached_tokens": usage.num_cached},
        "output_tokens": usage.num_completion,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning},
        "total_tokens": usage.num_prompt + usage.num_completion,
    }
