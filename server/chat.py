"""POST /v1/chat/completions: an answer to messages, through the model's chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.engine.output import LogprobText, describe_logprobs
from hal.engine.request import TokenLogprobs
from hal.engine.tokenizer import Tokenizer
from hal.server.chat_turn import ChatTurn, ReadAnswer, ReadDelta, start_turn
from hal.server.front import Front, ignored_header
from hal.server.params import wants_usage
from hal.server.schema import ChatBody, parse_body
from hal.server.stream import EventStream, frame, unless_disconnected
from hal.server.tool_calls import CallArguments, CallStart, Content, Event, Reasoning
from hal.server.tools import whole_choice
from hal.server.wire import finite, json_response


async def create_chat_completion(front: Front, http: HttpRequest) -> Response:
    """Streaming and not; nothing is sent before the engine has accepted."""
    body = parse_body(await http.body(), ChatBody)
    with_usage = wants_usage(body)
    turn = await start_turn(front, http, body, "chatcmpl")
    answer = _Answer(turn, front.served_name, front.loaded_text().tokenizer)
    headers = ignored_header(body)
    if body.stream:
        return EventStream(answer.frames(with_usage), turn.generation.close, headers)
    try:
        value = await unless_disconnected(http.receive, answer.whole())
    finally:
        turn.generation.close()
    return json_response(value, headers)


def _entry(token: LogprobText) -> dict[str, object]:
    return {"token": token.token, "logprob": finite(token.logprob), "bytes": list(token.data)}


def _delta_choice(index: int, content: Mapping[str, object]) -> dict[str, object]:
    return {"index": index, "delta": content, "logprobs": None, "finish_reason": None}


@dataclass(slots=True)
class _Answer:
    """Shapes deltas as OpenAI's chat.completion and chat.completion.chunk objects."""

    turn: ChatTurn
    model: str
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))

    async def frames(self, with_usage: bool) -> AsyncIterator[bytes]:
        extra: dict[str, object] = {"usage": None} if with_usage else {}
        for index in range(self.turn.num_choices):
            first = _delta_choice(index, {"role": "assistant", "content": ""})
            yield frame(self._chunk([first]) | extra)
        async for read in self.turn.deltas():
            for choice in self._delta_choices(read):
                yield frame(self._chunk([choice]) | extra)
        if with_usage:
            yield frame(self._chunk([]) | {"usage": self.turn.generation.usage.as_json()})

    async def whole(self) -> dict[str, object]:
        choices = [self._whole_choice(answer) for answer in await self.turn.whole()]
        usage = self.turn.generation.usage.as_json()
        return self._object("chat.completion", choices) | {"usage": usage}

    def _whole_choice(self, answer: ReadAnswer) -> dict[str, object]:
        end = answer.end.delta
        read = whole_choice(answer.events, self._call_id(end.index))
        message: dict[str, object] = {"role": "assistant", "content": read.content}
        if read.reasoning:
            message["reasoning_content"] = read.reasoning
        if read.calls:
            message["tool_calls"] = [call.as_json() for call in read.calls]
        if read.reasoning or read.calls:
            message["content"] = read.content or None
        return {
            "index": end.index,
            "message": message,
            "logprobs": self._logprobs(tuple(answer.logprobs)),
            "finish_reason": answer.end.finish_reason,
            "stop_reason": end.stop_reason,
        }

    def _call_id(self, choice_index: int) -> str:
        return f"call-{self.turn.id.partition('-')[2]}-{choice_index}"

    def _chunk(self, choices: Sequence[Mapping[str, object]]) -> dict[str, object]:
        return self._object("chat.completion.chunk", choices)

    def _object(self, kind: str, choices: Sequence[Mapping[str, object]]) -> dict[str, object]:
        return {
            "id": self.turn.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _delta_choices(self, read: ReadDelta) -> list[dict[str, object]]:
        """One for each event of the text; logprobs with the first, the finish with the last."""
        delta, is_last = read.delta, read.finish_reason is not None
        contents = [self._content(event, delta.index) for event in read.events]
        if not contents and (is_last or delta.logprobs):
            contents = [{}]
        choices = [_delta_choice(delta.index, content) for content in contents]
        if choices:
            choices[0]["logprobs"] = self._logprobs(delta.logprobs)
        if is_last:
            choices[-1]["finish_reason"] = read.finish_reason
            choices[-1]["stop_reason"] = delta.stop_reason
        return choices

    def _content(self, event: Event, choice_index: int) -> dict[str, object]:
        match event:
            case Reasoning(text):
                return {"reasoning_content": text}
            case Content(text):
                return {"content": text}
            case CallStart(index, name):
                call: dict[str, object] = {
                    "index": index,
                    "id": f"{self._call_id(choice_index)}-{index}",
                    "type": "function",
                    "function": {"name": name, "arguments": ""},
                }
            case CallArguments(index, text):
                call = {"index": index, "function": {"arguments": text}}
        return {"tool_calls": [call]}

    def _logprobs(self, logprobs: tuple[TokenLogprobs, ...]) -> dict[str, object] | None:
        if not logprobs:
            return None
        positions = [describe_logprobs(self.tokenizer, entry) for entry in logprobs]
        return {
            "content": [
                {**_entry(p.chosen), "top_logprobs": [_entry(token) for token in p.top]}
                for p in positions
            ]
        }
