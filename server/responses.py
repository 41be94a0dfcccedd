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
from hal.server.generation import Usage
from hal.server.responses_request import ResponsesBody, chat_body, under_its_name
from hal.server.schema import parse_body
from hal.server.stream import EventStream, unless_disconnected
from hal.server.tool_calls import CallArguments, CallStart, Content, Event
from hal.server.wire import json_response

Fields = dict[str, object]


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
    """One item of the output while it grows: a message, or a call with a name."""

    id: str
    index: int
    name: str | None = None
    texts: list[str] = field(default_factory=list)

    def as_json(self, status: str) -> Fields:
        text = "".join(self.texts)
        if self.name is None:
            content = [_text_part(text)] if text else []
            kind: Fields = {"type": "message", "role": "assistant", "content": content}
        else:
            call_id = f"call_{self.id}"
            kind = {"type": "function_call", "call_id": call_id, "name": self.name}
            kind["arguments"] = text
        return {"id": self.id, "status": status, **kind}

    def place(self) -> Fields:
        place: Fields = {"item_id": self.id, "output_index": self.index}
        return place if self.name is not None else {**place, "content_index": 0}


def _text_part(text: str) -> Fields:
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
        (choice,) = await self.turn.generation.whole()
        for event in self.turn.reader().read(choice.text, is_last=True):
            list(self._pieces(event))
        return self._response(_status(choice.end.finish_reason))

    async def frames(self) -> AsyncIterator[bytes]:
        for name in ("response.created", "response.in_progress"):
            yield self._frame(name, {"response": self._response("in_progress")})
        reader = self.turn.reader()
        reason: str | None = None
        async for delta in self.turn.generation.deltas():
            reason = delta.finish_reason
            for event in reader.read(delta.text, is_last=reason is not None):
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
            case Content(text):
                if not self._is_open or self._items[-1].name is not None:
                    yield from self._open_item(None)
                    part = {"part": _text_part("")}
                    yield "response.content_part.added", {**self._items[-1].place(), **part}
                self._items[-1].texts.append(text)
                fields: Fields = {**self._items[-1].place(), "delta": text, "logprobs": []}
                yield "response.output_text.delta", fields
            case CallStart(_, name):
                yield from self._open_item(name)
            case CallArguments(_, text):
                self._items[-1].texts.append(text)
                fields = {**self._items[-1].place(), "delta": text}
                yield "response.function_call_arguments.delta", fields

    def _open_item(self, name: str | None) -> Iterator[tuple[str, Fields]]:
        yield from self._close_item("completed")
        index = len(self._items)
        prefix = "msg" if name is None else "fc"
        item = _Item(f"{prefix}_{self.turn.id.partition('-')[2]}_{index}", index, name)
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
        if item.name is None:
            yield "response.output_text.done", {**place, "text": text, "logprobs": []}
            yield "response.content_part.done", {**place, "part": _text_part(text)}
        else:
            done: Fields = {**place, "name": item.name, "arguments": text}
            yield "response.function_call_arguments.done", done
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
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt + usage.num_completion,
    }
