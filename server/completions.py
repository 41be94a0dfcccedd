"""POST /v1/completions: text continues a prompt."""

from __future__ import annotations

import codecs
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from hal.engine.output import describe_logprobs
from hal.engine.request import TokenLogprobs
from hal.engine.tokenizer import Tokenizer
from hal.server.front import EncodedPrompts, Front, ignored_header, job_id
from hal.server.generation import ChoiceDelta, Generation
from hal.server.guided import guided_of
from hal.server.params import completion_params, prompts_of, queue_terms, wants_usage
from hal.server.schema import CompletionBody, parse_body
from hal.server.stream import EventStream, frame, unless_disconnected
from hal.server.text import TextModel
from hal.server.wire import finite, json_response


async def create_completion(front: Front, http: HttpRequest) -> Response:
    """Streaming and not; nothing is sent before the engine has accepted."""
    body = parse_body(await http.body(), CompletionBody)
    front.check_model(body.model)
    text = front.loaded_text()
    with_usage = wants_usage(body)
    guided = guided_of(body)
    params = completion_params(body, text.defaults.sampling_params, guided)
    encoded = await _encode(front, text, body)
    answer_id = f"cmpl-{job_id(http)}"
    generation = await front.start(http, encoded, params, answer_id, queue_terms(body), guided)
    answer = _Answer(answer_id, front.served_name, text.tokenizer, params.skip_special_tokens)
    headers = ignored_header(body)
    if body.stream:
        return EventStream(answer.frames(generation, with_usage), generation.close, headers)
    try:
        value = await unless_disconnected(http.receive, answer.whole(generation))
    finally:
        generation.close()
    return json_response(value, headers)


async def _encode(front: Front, text: TextModel, body: CompletionBody) -> EncodedPrompts:
    max_model_len = front.info.max_model_len
    add_special_tokens = body.add_special_tokens is not False
    token_ids = [
        await text.encode(
            prompt, max_model_len, add_special_tokens=add_special_tokens, param="prompt"
        )
        if isinstance(prompt, str)
        else prompt
        for prompt in prompts_of(body.prompt)
    ]
    return EncodedPrompts(token_ids=token_ids, field="prompt", continues_text=True)


@dataclass(slots=True)
class _Logprobs:
    """Grows the `logprobs` object of one choice; offsets count characters of its text."""

    tokenizer: Tokenizer
    hidden_ids: frozenset[int]
    num_chars: int = 0
    _utf8: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def describe(self, logprobs: tuple[TokenLogprobs, ...]) -> dict[str, object]:
        offsets: list[int] = []
        positions = []
        for entry in logprobs:
            position = describe_logprobs(self.tokenizer, entry)
            positions.append(position)
            offsets.append(self.num_chars)
            if entry.token_id not in self.hidden_ids:
                self.num_chars += len(self._utf8.decode(position.chosen.data))
        return {
            "tokens": [p.chosen.token for p in positions],
            "token_logprobs": [finite(p.chosen.logprob) for p in positions],
            "top_logprobs": [
                {t.token: finite(t.logprob) for t in (p.chosen, *p.top)} for p in positions
            ],
            "text_offset": offsets,
        }


@dataclass(slots=True)
class _Answer:
    """Shapes deltas as OpenAI's text_completion objects."""

    id: str
    model: str
    tokenizer: Tokenizer
    skip_special_tokens: bool
    created: int = field(default_factory=lambda: int(time.time()))
    _logprobs: dict[int, _Logprobs] = field(default_factory=dict)

    async def frames(self, generation: Generation, with_usage: bool) -> AsyncIterator[bytes]:
        extra: dict[str, object] = {"usage": None} if with_usage else {}
        async for delta in generation.deltas():
            if delta.text or delta.logprobs or delta.finish_reason is not None:
                choice = self._choice(
                    delta.index, delta.text, delta, self._described(delta.index, delta.logprobs)
                )
                yield frame(self._object([choice]) | extra)
        if with_usage:
            yield frame(self._object([]) | {"usage": generation.usage.as_json()})

    async def whole(self, generation: Generation) -> dict[str, object]:
        choices = [
            self._choice(
                choice.end.index,
                choice.text,
                choice.end,
                self._described(choice.end.index, tuple(choice.logprobs)),
            )
            for choice in await generation.whole()
        ]
        return self._object(choices) | {"usage": generation.usage.as_json()}

    def _described(
        self, index: int, logprobs: tuple[TokenLogprobs, ...]
    ) -> dict[str, object] | None:
        if not logprobs:
            return None
        describer = self._logprobs.get(index)
        if describer is None:
            hidden = self.tokenizer.special_token_ids if self.skip_special_tokens else frozenset()
            describer = self._logprobs[index] = _Logprobs(self.tokenizer, hidden)
        return describer.describe(logprobs)

    def _object(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _choice(
        self, index: int, text: str, end: ChoiceDelta, logprobs: dict[str, object] | None
    ) -> dict[str, object]:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": end.finish_reason,
            "stop_reason": end.stop_reason,
        }
