"""One turn of a chat, whatever API asked for it: messages and tools in, a generation out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from starlette.requests import Request as HttpRequest

from hal.sampling_params import SamplingParams
from hal.server.errors import invalid_value
from hal.server.front import EncodedPrompts, Front, job_id
from hal.server.generation import Generation
from hal.server.guided import guided_of
from hal.server.params import chat_messages, chat_params, queue_terms
from hal.server.schema import ChatBody
from hal.server.text import TextModel
from hal.server.tools import ChoiceReader, Tools, tools_of


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A generation that the engine has accepted, and how to read its choices.

    tools: None where the text has no calls to look for
    """

    id: str
    generation: Generation
    num_choices: int
    tools: Tools | None
    family: str

    def reader(self) -> ChoiceReader:
        """A new one for each choice."""
        return ChoiceReader(self.tools, self.family)


async def start_turn(front: Front, http: HttpRequest, body: ChatBody, prefix: str) -> ChatTurn:
    """Raises ApiError or RequestError naming the field. `prefix` is that of the answer's id."""
    front.check_model(body.model)
    text = front.loaded_text()
    tools, guided = tools_of(body), guided_of(body)
    forced = None if tools is None else tools.guided()
    if forced is not None and guided is not None:
        raise invalid_value(f"tool_choice and {guided.field} both say what the answer must be")
    params = chat_params(body, text.defaults.sampling_params, forced or guided)
    if tools is not None and body.skip_special_tokens is None:
        # Some families mark calls by control tokens.
        params = replace(params, skip_special_tokens=False)
    encoded = await encode_turn(front, body)
    params = _with_default_budget(front, text, params, len(encoded.token_ids[0]))
    turn_id = f"{prefix}-{job_id(http)}"
    generation = await front.start(
        http, encoded, params, turn_id, queue_terms(body), forced or guided
    )
    # What a schema guides is JSON for the client and no call.
    readable = None if guided is not None else tools
    return ChatTurn(turn_id, generation, params.n, readable, text.tool_family)


def _with_default_budget(
    front: Front, text: TextModel, params: SamplingParams, num_prompt: int
) -> SamplingParams:
    if params.max_tokens is not None or text.defaults.max_new_tokens is None:
        return params
    left = front.info.max_model_len - num_prompt
    return replace(params, max_tokens=max(1, min(left, text.defaults.max_new_tokens)))


async def render_turn(front: Front, body: ChatBody) -> str:
    """The text of a turn's prompt, through the chat template."""
    text, tools = front.loaded_text(), tools_of(body)
    return await text.render(
        chat_messages(body.messages),
        tools=None if tools is None else tools.specs,
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=body.chat_template_kwargs,
    )


async def encode_turn(front: Front, body: ChatBody) -> EncodedPrompts:
    """The token ids of a turn's prompt, nothing generated."""
    prompt = await render_turn(front, body)
    # The template has written the control tokens itself.
    token_ids = await front.loaded_text().encode(
        prompt, front.info.max_model_len, add_special_tokens=False, param="messages"
    )
    return EncodedPrompts(token_ids=[token_ids], field="messages", continues_text=False)
