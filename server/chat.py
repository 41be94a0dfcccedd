"""POST /v1/chat/completions: an answer to messages, through the model's chat template."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.engine.output import LogprobText, describe_logprobs
from hal.engine.request import TokenLogprobs
from hal.engine.tokenizer import Tokenizer
from hal.server.front import EncodedPrompts, Front, ignored_header, job_id
from hal.server.generation import ChoiceDelta, Generation
from hal.server.params import chat_messages, chat_params, queue_terms, wants_usage
from hal.server.schema import ChatBody, parse_body
from hal.server.stream import EventStream, frame, unless_disconnected
from hal.server.text import TextModel
from hal.server.wire import finite, json_response


async def create_chat_completion(front: Front, http: HttpRequest) -> Response:
    """Streaming and not; nothing is sent before the engine has accepted."""
    body = parse_body(await http.body(), ChatBody)
    front.check_model(body.model)
    text = front.loaded_text()
    with_usage = wants_usage(body)
    params = chat_params(body, text.defaults.sampling_params)
    encoded = await _encode(front, text, body)
    if params.max_tokens is None and text.defaults.max_new_tokens is not None:
        left = front.info.max_model_len - len(encoded.token_ids[0])
        params = replace(params, max_tokens=max(1, min(left, text.defaults.max_new_tokens)))
    answer_id = f"chatcmpl-{job_id(http)}"
    generation = await front.start(http, encoded, params, answer_id, queue_terms(body))
    answer = _Answer(answer_id, front.served_name, text.tokenizer)
    headers = ignored_header(body)
    if body.stream:
        frames = answer.frames(generation, params.n, with_usage)
        return EventStream(frames, generation.close, headers)
    try:
        value = await unless_disconnected(http.receive, answer.whole(generation))
    finally:
        generation.close()
    return json_response(value, headers)


async def _encode(front: Front, text: TextModel, body: ChatBody) -> EncodedPrompts:
    prompt = await text.render(
        chat_messages(body.messages),
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=body.chat_template_kwargs,
    )
    # The template has written the control tokens itself.
    token_ids = await text.encode(
        prompt, front.info.max_model_len, add_special_tokens=False, param="messages"
    )
    return EncodedPrompts(token_ids=[token_ids], field="messages", continues_text=False)


def _entry(token: LogprobText) -> dict[str, object]:
    return {"token": token.token, "logprob": finite(token.logprob), "bytes": list(token.data)}


@dataclass(slots=True)
class _Answer:
    """Shapes deltas as OpenAI's chat.completion and chat.completion.chunk objects."""

    id: str
    model: str
    tokenizer: Tokenizer
    created: int = field(default_factory=lambda: int(time.time()))

    async def frames(
        self, generation: Generation, num_choices: int, with_usage: bool
    ) -> AsyncIterator[bytes]:
        extra: dict[str, object] = {"usage": None} if with_usage else {}
        for index in range(num_choices):
            first = {"role": "assistant", "content": ""}
            yield frame(self._chunk([self._delta_choice(ChoiceDelta(index, ""), first)]) | extra)
        async for delta in generation.deltas():
            if delta.text or delta.logprobs or delta.finish_reason is not None:
                content = {"content": delta.text} if delta.text else {}
                yield frame(self._chunk([self._delta_choice(delta, content)]) | extra)
        if with_usage:
            yield frame(self._chunk([]) | {"usage": generation.usage.as_json()})

    async def whole(self, generation: Generation) -> dict[str, object]:
        choices: list[dict[str, object]] = [
            {
                "index": choice.end.index,
                "message": {"role": "assistant", "content": choice.text},
                "logprobs": self._logprobs(tuple(choice.logprobs)),
                "finish_reason": choice.end.finish_reason,
                "stop_reason": choice.end.stop_reason,
            }
            for choice in await generation.whole()
        ]
        return self._object("chat.completion", choices) | {"usage": generation.usage.as_json()}

    def _chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return self._object("chat.completion.chunk", choices)

    def _object(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _delta_choice(self, delta: ChoiceDelta, content: dict[str, str]) -> dict[str, object]:
        choice: dict[str, object] = {
            "index": delta.index,
            "delta": content,
            "logprobs": self._logprobs(delta.logprobs),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice

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
