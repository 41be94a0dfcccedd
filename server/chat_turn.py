"""One turn of a chat, whatever API asked for it: messages and tools in, read answers out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from starlette.requests import Request as HttpRequest

from hal.engine.chat_prompt import ChatPrompt
from hal.engine.request import TokenLogprobs
from hal.sampling_params import SamplingParams
from hal.server.errors import invalid_value, unsupported
from hal.server.front import EncodedPrompts, Front, job_id
from hal.server.generation import ChoiceDelta, Generation
from hal.server.guided import Guided, guided_of
from hal.server.params import chat_messages, chat_params, queue_terms
from hal.server.reasoning import Split
from hal.server.schema import ChatBody
from hal.server.text import TextModel
from hal.server.tool_calls import Event
from hal.server.tools import ChoiceReader, Tools, tools_of


@dataclass(frozen=True, slots=True)
class ReadDelta:
    """What one step added to a choice, read; finish_reason is also `tool_calls`."""

    delta: ChoiceDelta
    events: list[Event]
    finish_reason: str | None


@dataclass(slots=True)
class ReadAnswer:
    """A whole choice; `end` is its last delta."""

    end: ReadDelta
    events: list[Event] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A generation that the engine has accepted, and how to read its choices.

    tools: None where the text has no calls to look for
    split: None where it has no reasoning to look for
    """

    id: str
    generation: Generation
    num_choices: int
    tools: Tools | None
    family: str
    split: Split | None

    async def deltas(self) -> AsyncIterator[ReadDelta]:
        """As Generation.deltas(), which says what it raises."""
        readers = [
            ChoiceReader(self.tools, self.family, self.split) for _ in range(self.num_choices)
        ]
        async for delta in self.generation.deltas():
            reader, is_last = readers[delta.index], delta.finish_reason is not None
            events = reader.read(delta.text, delta.num_tokens, is_last=is_last)
            if is_last:
                self.generation.usage.num_reasoning += reader.num_reasoning
            yield ReadDelta(delta, events, reader.finish_reason(delta.finish_reason))

    async def whole(self) -> list[ReadAnswer]:
        """Every choice once it has ended, in order of index: what the deltas add up to."""
        answers: dict[int, ReadAnswer] = {}
        async for read in self.deltas():
            answer = answers.setdefault(read.delta.index, ReadAnswer(read))
            answer.end = read
            answer.events.extend(read.events)
            answer.logprobs.extend(read.delta.logprobs)
        return [answers[index] for index in sorted(answers)]


async def start_turn(front: Front, http: HttpRequest, body: ChatBody, prefix: str) -> ChatTurn:
    """Raises ApiError or RequestError naming the field. `prefix` is that of the answer's id."""
    front.check_model(body.model)
    text = front.loaded_text()
    tools, guided = tools_of(body), guided_of(body)
    forced = None if tools is None else tools.guided()
    if forced is not None and guided is not None:
        raise invalid_value(f"tool_choice and {guided.field} both say what the answer must be")
    params = chat_params(body, text.defaults.sampling_params, forced or guided)
    if (tools is not None or text.has_special_marks) and body.skip_special_tokens is None:
        # Some families mark calls and reasoning by control tokens.
        params = replace(params, skip_special_tokens=False)
    prompt = await render_turn(front, body)
    split = None if text.marks is None else Split(text.marks, text.marks.is_open_after(prompt.text))
    params = _behind_reasoning(params, forced or guided, split, text)
    encoded = await encode_turn(front, prompt)
    params = _with_default_budget(front, text, params, len(encoded.token_ids[0]))
    turn_id = f"{prefix}-{job_id(http)}"
    generation = await front.start(
        http, encoded, params, turn_id, queue_terms(body), forced or guided
    )
    # What a schema guides is JSON for the client and no call.
    readable = None if guided is not None else tools
    return ChatTurn(turn_id, generation, params.n, readable, text.tool_family, split)


def _behind_reasoning(
    params: SamplingParams, guided: Guided | None, split: Split | None, text: TextModel
) -> SamplingParams:
    """Where the answer may begin with reasoning, guided decoding begins behind it."""
    if guided is None or split is None:
        return params
    if text.has_special_marks:
        raise unsupported(
            f"{guided.field} with reasoning that special tokens mark "
            f"({split.marks.opening}); leave it out, or start with --reasoning-parser none",
            guided.field,
        )
    return replace(params, guided_decoding=split.guided(guided.params))


def _with_default_budget(
    front: Front, text: TextModel, params: SamplingParams, num_prompt: int
) -> SamplingParams:
    if params.max_tokens is not None or text.defaults.max_new_tokens is None:
        return params
    left = front.info.max_model_len - num_prompt
    return replace(params, max_tokens=max(1, min(left, text.defaults.max_new_tokens)))


async def render_turn(front: Front, body: ChatBody) -> ChatPrompt:
    """A turn's prompt, through the chat template."""
    text, tools = front.loaded_text(), tools_of(body)
    return await text.render(
        chat_messages(body.messages),
        tools=None if tools is None else tools.specs,
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=body.chat_template_kwargs,
    )


async def encode_turn(front: Front, prompt: ChatPrompt) -> EncodedPrompts:
    """The token ids of a turn's prompt."""
    token_ids = await front.loaded_text().encode_chat(prompt, front.info.max_model_len)
    return EncodedPrompts(token_ids=[token_ids], field="messages", continues_text=False)
