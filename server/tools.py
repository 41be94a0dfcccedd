"""The tools of a chat: from a body's fields to the template, the grammar and the parser."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hal.server.errors import ApiError, invalid_value
from hal.server.guided import Guided, make_guided
from hal.server.reasoning import ReasoningParser, Split
from hal.server.schema import ChatBody, shown
from hal.server.tool_calls import (
    CallArguments,
    CallStart,
    Content,
    Event,
    Reasoning,
    ToolParser,
    merged,
)
from hal.server.tool_parser import FAMILIES, ArrayParser, PlainParser

MAX_TOOLS = 128
MAX_NAME_CHARS = 64
MAX_FORCED_CALLS = 16


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions a model may call.

    specs: as the chat template takes them
    forced: names of which one must be called; empty where the model decides
    """

    specs: Sequence[Mapping[str, object]]
    schemas: Mapping[str, Mapping[str, object]]
    forced: Sequence[str]
    is_parallel: bool

    def guided(self) -> Guided | None:
        """A JSON array of calls, for `required` and a named function."""
        if not self.forced:
            return None
        indices = {name: index for index, name in enumerate(self.schemas)}
        schema = {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_FORCED_CALLS if self.is_parallel else 1,
            "items": {"anyOf": [_call_schema(name, indices[name]) for name in self.forced]},
            "$defs": {
                f"tool{index}": _moved(self.schemas[name], f"#/$defs/tool{index}")
                for name, index in indices.items()
            },
        }
        return make_guided("tools", json=schema)

    def parser(self, family: str) -> ToolParser:
        return ArrayParser() if self.forced else FAMILIES[family](self.schemas)


def tools_of(body: ChatBody) -> Tools | None:
    """None where no tool can be called. Raises ApiError 400 naming the field."""
    choice = body.tool_choice
    if body.tools is None:
        if choice not in (None, "none"):
            raise invalid_value("tool_choice needs tools", "tool_choice")
        return None
    if not body.tools:
        raise invalid_value("tools is empty; leave it out", "tools")
    if len(body.tools) > MAX_TOOLS:
        raise invalid_value(f"tools has {len(body.tools)} functions; at most {MAX_TOOLS}", "tools")
    schemas = dict(_function(tool, f"tools.{i}") for i, tool in enumerate(body.tools))
    if len(schemas) < len(body.tools):
        raise invalid_value("two functions in tools have the same name", "tools")
    if choice == "none":
        return None
    return Tools(
        specs=body.tools,
        schemas=schemas,
        forced=_forced(choice, tuple(schemas)),
        is_parallel=body.parallel_tool_calls is not False,
    )


def _function(tool: Mapping[str, object], path: str) -> tuple[str, Mapping[str, object]]:
    """Name and parameters' schema."""
    if tool.get("type") != "function":
        raise ApiError(
            400,
            "unsupported_parameter",
            f"not supported yet: {path}.type={shown(tool.get('type'))}; send functions",
            param=f"{path}.type",
        )
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise invalid_value(f"{path}.function must be an object", f"{path}.function")
    name, path = function.get("name"), f"{path}.function"
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        raise invalid_value(
            f"{path}.name must be text of 1 to {MAX_NAME_CHARS} characters; got {shown(name)}",
            f"{path}.name",
        )
    parameters = function.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(parameters, Mapping):
        raise invalid_value(f"{path}.parameters must be a JSON schema", f"{path}.parameters")
    return name, parameters


def _forced(choice: object, names: Sequence[str]) -> Sequence[str]:
    match choice:
        case None | "auto":
            return ()
        case "required":
            return names
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return (name,)
        case {"type": "function", "function": {"name": str(name)}}:
            raise invalid_value(
                f"tool_choice names {shown(name)}, which is not in tools", "tool_choice"
            )
        case _:
            raise invalid_value(
                "tool_choice must be none, auto, required or a function of tools; got "
                f"{shown(choice)}",
                "tool_choice",
            )


def _call_schema(name: str, index: int) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/tool{index}"}},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: object, place: str) -> object:
    """The schema with references to its own root changed to where it stands now."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


class ChoiceReader:
    """Splits one choice's text into reasoning, content and calls; one call where asked to."""

    def __init__(self, tools: Tools | None, family: str, split: Split | None) -> None:
        self._parser = PlainParser() if tools is None else tools.parser(family)
        self._reasoning: ReasoningParser | None = None
        if split is not None:
            self._parser = self._reasoning = ReasoningParser(split, self._parser)
        self._is_parallel = tools is None or tools.is_parallel
        self._num_before_answer = 0
        self.has_calls = False

    @property
    def num_reasoning(self) -> int:
        """Tokens up to the end of the reasoning, its marks included."""
        has_reasoning = self._reasoning is not None and self._reasoning.has_reasoning
        return self._num_before_answer if has_reasoning else 0

    def read(self, text: str, num_tokens: int, *, is_last: bool) -> list[Event]:
        """num_tokens: how many tokens the text is."""
        if self._reasoning is not None and self._reasoning.is_before_answer:
            self._num_before_answer += num_tokens
        events = self._parser.feed(text)
        if is_last:
            events += self._parser.finish()
        kept = [event for event in events if self._is_wanted(event)]
        self.has_calls |= any(isinstance(event, CallStart) for event in kept)
        return kept

    def finish_reason(self, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and self.has_calls else reason

    def _is_wanted(self, event: Event) -> bool:
        return self._is_parallel or isinstance(event, Reasoning | Content) or event.index == 0


@dataclass(slots=True)
class ToolCall:
    """One call of a whole answer; arguments is JSON text, if the model wrote JSON."""

    id: str
    name: str
    arguments: str = ""

    def as_json(self) -> dict[str, object]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}

    def parsed(self) -> object:
        """The arguments as a value; {} where a cut answer left no JSON."""
        try:
            return json.loads(self.arguments)
        except (ValueError, RecursionError):
            return {}


@dataclass(frozen=True, slots=True)
class ReadChoice:
    """A whole answer, read."""

    reasoning: str
    content: str
    calls: Sequence[ToolCall]


def whole_choice(events: Sequence[Event], call_id: str) -> ReadChoice:
    """call_id: what the ids of the calls begin with."""
    reasoning, content, calls = list[str](), list[str](), list[ToolCall]()
    for event in merged(events):
        match event:
            case Reasoning(text):
                reasoning.append(text)
            case Content(text):
                content.append(text)
            case CallStart(index, name):
                calls.append(ToolCall(f"{call_id}-{index}", name))
            case CallArguments(index, text):
                calls[index].arguments += text
    return ReadChoice("".join(reasoning), "".join(content), calls)
