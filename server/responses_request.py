"""From the items of a response's input to the body of a chat completion."""

from __future__ import annotations

from collections.abc import Mapping

from hal.errors import RequestError
from hal.server.errors import ApiError, invalid_value, unsupported
from hal.server.schema import Body, ChatBody, shown

_TEXT_PARTS = ("input_text", "output_text", "text")
_NAMES = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_tokens": "max_output_tokens",
    "messages": "input",
}
"""What the chat calls the fields of this body, the longer names first."""


class ResponsesBody(Body):
    model: str | None = None
    input: object
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: dict[str, object] | None = None
    tools: list[dict[str, object]] | None = None
    tool_choice: object = None
    parallel_tool_calls: bool | None = None


def chat_body(body: ResponsesBody) -> ChatBody:
    """Raises ApiError 400 naming the place."""
    system = [] if body.instructions is None else [_message("system", body.instructions)]
    tools = [_tool(tool, f"tools.{i}") for i, tool in enumerate(body.tools or ())]
    fields = {
        "model": body.model,
        "messages": [*system, *_messages(body.input)],
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "response_format": _response_format(body.text or {}),
        "tools": tools or None,
        "tool_choice": _choice(body.tool_choice) if tools else None,
        "parallel_tool_calls": body.parallel_tool_calls,
    }
    return ChatBody.model_validate(fields)


def under_its_name(error: ApiError | RequestError) -> ApiError | RequestError:
    """The chat's error on a field under the name that this body has for it."""
    param = (error.param or "").replace("max_completion_tokens", "max_tokens")
    for old, new in _NAMES.items():
        if param == old or param.startswith(old + "."):
            message = error.message.replace(error.param or old, param).replace(old, new, 1)
            param = new + param[len(old) :]
            if isinstance(error, ApiError):
                return ApiError(error.status, error.code, message, error.type, param, error.headers)
            return type(error)(message, param=param, code=error.code)
    return error


def _messages(value: object) -> list[dict[str, object]]:
    if isinstance(value, str):
        return [_message("user", value)]
    if not isinstance(value, list) or not value:
        raise invalid_value(f"input must be text or a list of items; got {shown(value)}", "input")
    messages: list[dict[str, object]] = []
    for i, item in enumerate(value):
        messages += _item(item, f"input.{i}")
    return messages


def _item(item: object, path: str) -> list[dict[str, object]]:
    match item:
        case {
            "type": "function_call",
            "call_id": str(i),
            "name": str(name),
            "arguments": str(text),
        }:
            function = {"name": name, "arguments": text}
            call = {"id": i, "type": "function", "function": function}
            return [{"role": "assistant", "content": "", "tool_calls": [call]}]
        case {"type": "function_call_output", "call_id": str(call_id), "output": output}:
            text = _text(output, f"{path}.output")
            return [{"role": "tool", "tool_call_id": call_id, "content": text}]
        case {"type": "reasoning"}:
            return []  # a model's earlier thoughts are not shown to it again
        case {"role": str(role), "content": content, **others} if _is_message(others):
            return [_message(role, _text(content, f"{path}.content"))]
        case {"type": str(kind)} if kind not in ("message", "function_call"):
            raise unsupported(f"{path}.type={shown(kind)}", f"{path}.type")
        case _:
            raise invalid_value(f"{path} is no item of a known form; got {shown(item)}", path)


def _is_message(others: Mapping[object, object]) -> bool:
    return others.get("type") in (None, "message")


def _message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "content": text}


def _text(content: object, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid_value(f"{path} must be text or a list of parts; got {shown(content)}", path)
    texts = []
    for i, part in enumerate(content):
        match part:
            case {"type": str(kind), "text": str(text)} if kind in _TEXT_PARTS:
                texts.append(text)
            case {"type": "input_image" | "input_file" | "input_audio" as kind}:
                raise unsupported(f"{path}.{i}.type={shown(kind)}; send text", f"{path}.{i}.type")
            case _:
                raise invalid_value(
                    f"{path}.{i} is no part of a known form; got {shown(part)}", f"{path}.{i}"
                )
    return "".join(texts)


def _tool(tool: Mapping[str, object], path: str) -> dict[str, object]:
    if tool.get("type") != "function":
        raise unsupported(f"{path}.type={shown(tool.get('type'))}; define the tool", f"{path}.type")
    kept = ("name", "description", "parameters")
    function = {name: tool[name] for name in kept if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _choice(choice: object) -> object:
    match choice:
        case {"type": "function", "name": name}:
            return {"type": "function", "function": {"name": name}}
        case _:
            return choice


def _response_format(text: Mapping[str, object]) -> dict[str, object] | None:
    found = text.get("format")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise invalid_value(f"text.format must be an object; got {shown(found)}", "text.format")
    if found.get("type") != "json_schema":
        return found
    return {"type": "json_schema", "json_schema": {"schema": found.get("schema")}}
