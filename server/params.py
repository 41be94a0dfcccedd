"""From a body's fields to SamplingParams, prompts and messages; every refusal names the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import orjson

from hal.errors import RequestError
from hal.sampling_params import SamplingParams
from hal.server.errors import ApiError, context_length_exceeded, invalid_value, unsupported
from hal.server.guided import Guided
from hal.server.schema import ChatBody, CompletionBody, GenerateBody, shown

MAX_STOPS = 16
MAX_STOP_CHARS = 4096
MAX_PROMPTS = 128
MAX_CHOICES = 1024
MAX_PRIORITY = 2**31 - 1
MAX_TIMEOUT_S = 86_400
DEFAULT_COMPLETION_TOKENS = 16

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_MESSAGE_FIELDS = ("name", "tool_calls", "tool_call_id", "reasoning_content")
_PLAIN_FIELDS = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "ignore_eos",
    "min_tokens",
    "seed",
)

Prompt = str | list[int]


def completion_params(
    body: CompletionBody, defaults: SamplingParams, guided: Guided | None = None
) -> SamplingParams:
    """max_tokens is 16 where the body has none; it is checked against the prompt later."""
    wanted = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    return _params(body, defaults, guided, max_tokens=wanted, logprobs=body.logprobs)


def chat_params(
    body: ChatBody, defaults: SamplingParams, guided: Guided | None = None
) -> SamplingParams:
    """max_tokens None means "what the context leaves"."""
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid_value("top_logprobs needs logprobs: true", "top_logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    try:
        return _params(body, defaults, guided, max_tokens=wanted, logprobs=logprobs)
    except RequestError as error:
        raise _renamed(error, body) from error


def _renamed(error: RequestError, body: ChatBody) -> RequestError:
    """The same error under the name of the field that the client used."""
    names = {"logprobs": "top_logprobs"}
    if body.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    name = names.get(error.param or "")
    if error.param is None or name is None:
        return error
    return RequestError(error.message.replace(error.param, name, 1), param=name)


def _params(
    body: GenerateBody,
    defaults: SamplingParams,
    guided: Guided | None,
    *,
    max_tokens: int | None,
    logprobs: int | None,
) -> SamplingParams:
    given = {name: value for name in _PLAIN_FIELDS if (value := getattr(body, name)) is not None}
    return replace(
        defaults,
        **given,
        stop=_stop_strings(body.stop),
        logit_bias=_logit_bias(body.logit_bias),
        max_tokens=max_tokens,
        logprobs=logprobs,
        guided_decoding=None if guided is None else guided.params,
    )


def wants_usage(body: GenerateBody) -> bool:
    """Whether a stream ends with a chunk of usage."""
    options = body.stream_options
    if options is None:
        return False
    if not body.stream:
        raise invalid_value("stream_options needs stream: true", "stream_options")
    if options.continuous_usage_stats:
        raise unsupported(
            "stream_options.continuous_usage_stats; use include_usage",
            "stream_options.continuous_usage_stats",
        )
    return bool(options.include_usage)


def with_token_budget(
    params: SamplingParams, num_prompt_tokens: int, max_model_len: int, prompt_field: str
) -> SamplingParams:
    """The params with max_tokens filled in; nothing is ever cut silently."""
    left = max_model_len - num_prompt_tokens
    if left < 1:
        raise context_length_exceeded(
            f"the prompt has {num_prompt_tokens} tokens and the context {max_model_len}, answer "
            f"included; shorten the prompt to at most {max_model_len - 1} tokens",
            prompt_field,
        )
    if params.max_tokens is None:
        return replace(params, max_tokens=left)
    if params.max_tokens > left:
        raise context_length_exceeded(
            f"{num_prompt_tokens} prompt tokens + max_tokens {params.max_tokens} = "
            f"{num_prompt_tokens + params.max_tokens}, but the context is {max_model_len}; lower "
            f"max_tokens to {left} or shorten the prompt",
            "max_tokens",
        )
    return params


@dataclass(frozen=True, slots=True)
class QueueTerms:
    """How a request waits for its turn; see hal.engine.request.Request."""

    priority: int = 0
    timeout_s: float | None = None


def queue_terms(body: GenerateBody) -> QueueTerms:
    priority = body.priority or 0
    if abs(priority) > MAX_PRIORITY:
        raise invalid_value(
            f"priority must be from {-MAX_PRIORITY} to {MAX_PRIORITY}; got {priority}", "priority"
        )
    if body.timeout_s is not None and not 0 < body.timeout_s <= MAX_TIMEOUT_S:
        raise invalid_value(
            f"timeout_s must be above 0 and at most {MAX_TIMEOUT_S}; got {body.timeout_s}",
            "timeout_s",
        )
    return QueueTerms(priority, body.timeout_s)


def check_num_choices(num_prompts: int, n: int) -> None:
    if num_prompts * n > MAX_CHOICES:
        raise invalid_value(
            f"{num_prompts} prompts x n {n} = {num_prompts * n} choices; at most {MAX_CHOICES} "
            "per request",
            "n",
        )


def prompts_of(prompt: object) -> list[Prompt]:
    """A completion's prompt: text, texts, token ids, or lists of token ids."""
    if isinstance(prompt, str):
        return [_not_empty(prompt)]
    if not isinstance(prompt, list):
        raise _prompt_type(prompt)
    if not prompt:
        raise invalid_value("the prompt is empty; give text or token ids", "prompt")
    if all(_is_int(item) for item in prompt):
        return [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise invalid_value(f"{len(prompt)} prompts; at most {MAX_PROMPTS} per request", "prompt")
    if all(isinstance(item, str) for item in prompt):
        return [_not_empty(item) for item in prompt]
    if all(isinstance(item, list) and all(_is_int(i) for i in item) for item in prompt):
        return [_not_empty(item) for item in prompt]
    raise _prompt_type(prompt)


def check_token_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    wrong = next((i for i in token_ids if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise invalid_value(
            f"{param} has the token id {shown(wrong)}; this model's ids are 0 to {vocab_size - 1}",
            param,
        )


def chat_messages(messages: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Messages as templates expect them: content is text; "developer" is today's "system"."""
    if not messages:
        raise invalid_value("messages is empty; send at least one message", "messages")
    return [_message(message, f"messages.{i}") for i, message in enumerate(messages)]


def _message(message: Mapping[str, object], path: str) -> dict[str, object]:
    role = message.get("role")
    if role is None:
        raise ApiError(
            400, "missing_required_parameter", f"{path}.role is required", param=f"{path}.role"
        )
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise invalid_value(
            f"{path}.role must be one of {known}; got {shown(role)}", f"{path}.role"
        )
    content = _content(message.get("content"), role, f"{path}.content")
    kept = {name: message[name] for name in _MESSAGE_FIELDS if message.get(name) is not None}
    if "tool_calls" in kept:
        kept["tool_calls"] = _past_calls(kept["tool_calls"], f"{path}.tool_calls")
    return {"role": "system" if role == "developer" else role, "content": content, **kept}


def _past_calls(calls: object, path: str) -> list[dict[str, object]]:
    """Calls that the model made before, arguments as objects: templates write them themselves."""
    if not isinstance(calls, list):
        raise invalid_value(f"{path} must be a list of calls; got {shown(calls)}", path)
    return [_past_call(call, f"{path}.{i}") for i, call in enumerate(calls)]


def _past_call(call: object, path: str) -> dict[str, object]:
    match call:
        case {"function": {"name": str(name), "arguments": str(text)}, **others}:
            try:
                arguments = orjson.loads(text or "{}")
            except orjson.JSONDecodeError:
                arguments = text  # what a cut answer has left; the template shows it as it is
            kept = {str(key): value for key, value in others.items()}
            return {**kept, "function": {"name": name, "arguments": arguments}}
        case _:
            raise invalid_value(
                f"{path} must have function.name and function.arguments, both text", path
            )


def _content(content: object, role: str, path: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, f"{path}.{i}") for i, part in enumerate(content))
    if content is None and role == "assistant":
        return ""  # an assistant message may consist of tool calls only
    if content is None:
        raise ApiError(400, "missing_required_parameter", f"{path} is required", param=path)
    raise invalid_value(f"{path} must be text or a list of parts; got {shown(content)}", path)


def _part(part: object, path: str) -> str:
    if not isinstance(part, dict):
        raise invalid_value(f"{path} must be an object; got {shown(part)}", path)
    kind = part.get("type")
    if kind != "text":
        raise unsupported(f"content of type {shown(kind)}; send text", f"{path}.type")
    text = part.get("text")
    if not isinstance(text, str):
        raise invalid_value(f"{path}.text must be a string; got {shown(text)}", f"{path}.text")
    return text


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise invalid_value(
            f"stop must be a non-empty string or a list of them; got {shown(stop)}", "stop"
        )
    if len(strings) > MAX_STOPS:
        raise invalid_value(f"stop has {len(strings)} strings; at most {MAX_STOPS}", "stop")
    longest = max((len(s) for s in strings), default=0)
    if longest > MAX_STOP_CHARS:
        raise invalid_value(
            f"a stop string has {longest} characters; at most {MAX_STOP_CHARS}", "stop"
        )
    return tuple(strings)


def _logit_bias(bias: Mapping[str, float] | None) -> dict[int, float]:
    parsed: dict[int, float] = {}
    for key, value in (bias or {}).items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise invalid_value(
                f"logit_bias maps token ids to numbers; {shown(key)} is not an id", "logit_bias"
            )
        parsed[int(key)] = value
    return parsed


def _not_empty(prompt: Prompt) -> Prompt:
    if not prompt:
        raise invalid_value("the prompt is empty; give text or token ids", "prompt")
    return prompt


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _prompt_type(prompt: object) -> ApiError:
    return invalid_value(
        "prompt must be a string, a list of strings, a list of token ids, or a list of such lists; "
        f"got {shown(prompt)}",
        "prompt",
    )
