"""From Anthropic's messages, tools and choices to the body of a chat completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from hal.server.errors import invalid_value, unsupported
from hal.server.schema import Body, ChatBody, shown

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class MessagesBody(Body):
    model: str | None = None
    messages: list[dict[str, object]]
    max_tokens: int | None = None
    system: object = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, object]] | None = None
    tool_choice: dict[str, object] | None = None
    thinking: dict[str, object] | None = None


def chat_body(body: MessagesBody) -> ChatBody:
    """Raises ApiError 400 naming the place."""
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        raise unsupported("thinking; leave it out", "thinking")
    system = [] if body.system is None else [_system(body.system)]
    choice = body.tool_choice or {}
    fields = {
        "model": body.model,
        "messages": [*system, *_messages(body.messages)],
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences or None,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "tools": [_tool(tool, f"tools.{i}") for i, tool in enumerate(body.tools or ())] or None,
        "tool_choice": None if body.tool_choice is None else _choice(body.tool_choice),
        # Without `thinking` the template decides; others than ours do not read the name.
        "chat_template_kwargs": None if body.thinking is None else {"enable_thinking": False},
        "parallel_tool_calls": choice.get("disable_parallel_tool_use") is not True,
    }
    return ChatBody.model_validate(fields)


def _system(system: object) -> dict[str, object]:
    return {"role": "system", "content": _text(system, "system")}


def _messages(messages: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    found = []
    for i, message in enumerate(messages):
        path = f"messages.{i}"
        role, content = message.get("role"), message.get("content")
        if role == "user":
            found += _user(content, f"{path}.content")
        elif role == "assistant":
            found.append(_assistant(content, f"{path}.content"))
        elif role == "system":
            found.append({"role": role, "content": _text(content, f"{path}.content")})
        else:
            raise invalid_value(
                f"{path}.role must be user or assistant; got {shown(role)}", f"{path}.role"
            )
    return found


def _user(content: object, path: str) -> list[dict[str, object]]:
    """Results of tools are messages of their own, before the text beside them."""
    if not isinstance(content, list):
        return [{"role": "user", "content": _text(content, path)}]
    results: list[dict[str, object]] = []
    texts: list[object] = []
    for i, block in enumerate(content):
        match block:
            case {"type": "tool_result", "tool_use_id": str(call_id), **others}:
                text = _text(others.get("content") or "", f"{path}.{i}.content")
                results.append({"role": "tool", "tool_call_id": call_id, "content": text})
            case _:
                texts.append(_block_text(block, f"{path}.{i}"))
    return [*results, {"role": "user", "content": "".join(map(str, texts))}] if texts else results


def _assistant(content: object, path: str) -> dict[str, object]:
    if not isinstance(content, list):
        return {"role": "assistant", "content": _text(content, path)}
    texts: list[str] = []
    calls: list[dict[str, object]] = []
    for i, block in enumerate(content):
        match block:
            case {"type": "tool_use", "id": str(call_id), "name": str(name), "input": dict(value)}:
                function = {"name": name, "arguments": orjson.dumps(value).decode()}
                calls.append({"id": call_id, "type": "function", "function": function})
            case {"type": "thinking" | "redacted_thinking"}:
                pass  # a model's earlier thoughts are not shown to it again
            case _:
                texts.append(_block_text(block, f"{path}.{i}"))
    message: dict[str, object] = {"role": "assistant", "content": "".join(texts)}
    return {**message, "tool_calls": calls} if calls else message


def _text(content: object, path: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_block_text(block, f"{path}.{i}") for i, block in enumerate(content))
    raise invalid_value(f"{path} must be text or a list of blocks; got {shown(content)}", path)


def _block_text(block: object, path: str) -> str:
    match block:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image" | "document" | "search_result" as kind}:
            raise unsupported(f"{path}.type={shown(kind)}; send text", f"{path}.type")
        case _:
            raise invalid_value(f"{path} is no block of a known form; got {shown(block)}", path)


def _tool(tool: Mapping[str, object], path: str) -> dict[str, object]:
    if tool.get("type") not in (None, "custom"):
        raise unsupported(f"{path}.type={shown(tool['type'])}; define the tool", f"{path}.type")
    function = {
        "name": tool.get("name"),
        "description": tool.get("description") or "",
        "parameters": tool.get("input_schema", {"type": "object", "properties": {}}),
    }
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, object]) -> object:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(kind, str) and kind in _CHOICES:
        return _CHOICES[kind]
    raise invalid_value(
        f"tool_choice.type must be auto, any, tool or none; got {shown(kind)}", "tool_choice.type"
    )
