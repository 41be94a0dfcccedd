"""Request bodies: which fields exist, their exact types, and what becomes of all others.

Types are strict (true is not 1, "3" is not 3, 1.0 is not 1) and floats finite. Ranges are checked
once, by SamplingParams. Unknown fields are accepted and named in the header x-hal-ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hal.server.errors import ApiError, invalid_value, unsupported

MAX_SHOWN_CHARS = 50
MAX_DEPTH = 128
"""Of objects and lists inside each other: what walks through a body may go as deep."""

NO_OPS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
    | {"prompt_cache_retention", "prediction", "parallel_tool_calls", "verbosity"}
)
"""Accepted without effect: they cannot change an answer here."""

UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "background": (False,),
    "bad_words": ([],),
    "best_of": (1,),
    "cache_salt": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "conversation": (),
    "documents": (),
    "echo": (False,),
    "function_call": ("none",),
    "functions": (),
    "length_penalty": (1, 1.0),
    "modalities": (["text"],),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "reasoning": (),
    "reasoning_effort": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": (),
    "truncate_prompt_tokens": (),
    "truncation": ("disabled",),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Fields that would change the answer, with the values that ask for what we do anyway.

A body that has the field itself is not meant.
"""


class Body(BaseModel):
    """Base of all bodies: strict, and unknown fields are kept to be reported."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerateBody(Body):
    """What completions and chat completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: object = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    priority: int | None = None
    timeout_s: float | None = None
    response_format: dict[str, object] | None = None
    structured_outputs: dict[str, object] | None = None
    guided_json: object = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None


class CompletionBody(GenerateBody):
    prompt: object
    logprobs: int | None = None
    add_special_tokens: bool | None = None


class ChatBody(GenerateBody):
    messages: list[dict[str, object]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None
    tools: list[dict[str, object]] | None = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None


class EmbeddingsBody(Body):
    model: str | None = None
    input: object
    encoding_format: str | None = None
    dimensions: int | None = None
    pooling: str | None = None


class TokenizeBody(Body):
    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, object]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[int]
    skip_special_tokens: bool | None = None


AnyBody = TypeVar("AnyBody", bound=Body)


def parse_body(raw: bytes, kind: type[AnyBody]) -> AnyBody:
    """Raises ApiError 400 naming the field; refuses what would change the answer unseen."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        # NaN, Infinity, 1e999, lone surrogates and depth beyond 1024 end here too.
        raise invalid_value(f"the body is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise invalid_value(f"the body must be a JSON object, not {type(value).__name__}")
    _check_depth(raw, value)
    for name in (UNSUPPORTED.keys() & value.keys()) - kind.model_fields.keys():
        _refuse(name, value[name])
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _api_error(error.errors(include_url=False)[0]) from error


def _check_depth(raw: bytes, value: object) -> None:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return  # as almost every body: a look at each of a million token ids would cost
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise invalid_value(f"the body is nested deeper than {MAX_DEPTH} levels")


def ignored_fields(body: Body) -> list[str]:
    """Names of fields that this server does not know, cut to what a header may hold."""
    names = sorted((body.model_extra or {}).keys() - NO_OPS - UNSUPPORTED.keys())
    return ["".join(c if c.isascii() and c.isprintable() else "?" for c in n)[:64] for n in names][
        :32
    ]


def shown(value: object) -> str:
    """A client's own value for an error message, short enough to read."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def _refuse(name: str, value: object) -> None:
    if value is None or any(type(v) is type(value) and v == value for v in UNSUPPORTED[name]):
        return
    raise unsupported(f"{name}={shown(value)}; leave it out", name)


def _api_error(detail: ErrorDetails) -> ApiError:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return ApiError(400, "missing_required_parameter", f"{path} is required", param=path)
    if detail["type"] == "finite_number":
        return invalid_value(f"{path} must be a finite number", path)
    reason = detail["msg"].replace("Input should be", "must be")
    return invalid_value(f"{path} {reason}; got {shown(detail['input'])}", path)
