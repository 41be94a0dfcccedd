"""docs/fields.md: every field of every body, as the code that parses them has it."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence

import orjson

from hal.server.anthropic_request import MessagesBody
from hal.server.responses_request import ResponsesBody
from hal.server.schema import (
    NO_OPS,
    UNSUPPORTED,
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingsBody,
    TokenizeBody,
)

_INTRO = """\
# Fields of requests

What becomes of every field that the server knows, made from the code that parses them. Types are
strict: `true` is not 1, `"3"` is not 3. Ranges stand in the error that a wrong value gets, and in
[the Python API](python.md#sampling), whose names are the same.

- *yes*: it has its effect.
- *no effect*: accepted, since it cannot change an answer here.
- *400*: known, not supported yet, and it would change the answer: `unsupported_parameter`. A value
  behind it asks for what happens anyway and is accepted, as `null` always is.
- a dash: unknown to the route; accepted and named in the header `x-hal-ignored`.
"""
GENERATING: Mapping[str, type[Body]] = {
    "chat/completions": ChatBody,
    "completions": CompletionBody,
    "responses": ResponsesBody,
    "messages": MessagesBody,
}
_OTHERS: Mapping[str, type[Body]] = {
    "/v1/embeddings": EmbeddingsBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}


def fields_page() -> str:
    """The whole page, without the note on top."""
    names = {name for body in GENERATING.values() for name in body.model_fields}
    rows = [
        _row(name, _type_of(name), [state_of(name, body) for body in GENERATING.values()])
        for name in sorted(names | NO_OPS | UNSUPPORTED.keys())
    ]
    header = ["field", "type", *(f"`/v1/{route}`" for route in GENERATING)]
    others = [
        f"- `{route}`: "
        + ", ".join(f"`{name}` ({_type(body, name)})" for name in body.model_fields)
        for route, body in _OTHERS.items()
    ]
    table = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *rows]
    tail = ["", "`/v1/messages/count_tokens` takes the fields of `/v1/messages`.", "", *others]
    return "\n".join([_INTRO, *table, *tail]) + "\n"


def _row(name: str, kind: str, states: Sequence[str]) -> str:
    return f"| `{name}` | {kind} | " + " | ".join(states) + " |"


def state_of(name: str, body: type[Body]) -> str:
    """What becomes of the field on a route with this body, as in the table."""
    field = body.model_fields.get(name)
    if field is not None:
        return "yes, required" if field.is_required() else "yes"
    if name in NO_OPS:
        return "no effect"
    if name in UNSUPPORTED:
        values = [f"`{orjson.dumps(value).decode()}`" for value in UNSUPPORTED[name]]
        return " ".join(["400", *(["but for", " or ".join(values)] if values else [])])
    return "-"


def _type_of(name: str) -> str:
    """Of the first body that has the field."""
    body = next((b for b in GENERATING.values() if name in b.model_fields), None)
    return "" if body is None else _type(body, name)


def _type(body: type[Body], name: str) -> str:
    return _shown(body.model_fields[name].annotation)


def _shown(annotation: object) -> str:
    parts = [a for a in typing.get_args(annotation) if a is not type(None)]
    if isinstance(annotation, types.UnionType):
        return " or ".join(_shown(part) for part in parts)
    match typing.get_origin(annotation):
        case origin if origin is list:
            return f"list of {_shown(parts[0])}"
        case origin if origin is dict:
            return f"object of {_shown(parts[1])}" if parts[1] is not object else "object"
    plain = {str: "text", int: "integer", float: "number", bool: "boolean", object: "any"}
    if isinstance(annotation, type):
        return plain.get(annotation, "object")
    return str(annotation)
