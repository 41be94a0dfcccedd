"""The OpenAPI document: the routes of the table, the bodies of the code that parses them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pydantic.json_schema import models_json_schema

import hal
from hal.server.admin import LimitsBody, LogLevelBody
from hal.server.anthropic_request import MessagesBody
from hal.server.front import Handler
from hal.server.limits import OPEN_PATHS
from hal.server.responses_request import ResponsesBody
from hal.server.schema import (
    Body,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingsBody,
    TokenizeBody,
)
from hal.server.wire import ANTHROPIC_PATH

STATE_PATHS = OPEN_PATHS - {"/live"}
"""What answers 503 with the server's state."""
_SCHEMAS = "#/components/schemas/"
_HELLO = [{"role": "user", "content": "Hello!"}]


@dataclass(frozen=True, slots=True)
class TakesBody:
    """What a route does with the body it takes, and the smallest one that works."""

    summary: str
    body: type[Body]
    example: Mapping[str, object] = field(default_factory=dict)


TAKES_BODY: Mapping[str, TakesBody] = {
    "/v1/chat/completions": TakesBody(
        "An answer to messages, whole or streamed", ChatBody, {"messages": _HELLO, "max_tokens": 32}
    ),
    "/v1/completions": TakesBody(
        "Continue a prompt, whole or streamed", CompletionBody, {"prompt": "Once", "max_tokens": 32}
    ),
    "/v1/responses": TakesBody(
        "The same chat in OpenAI's newer shape", ResponsesBody, {"input": "Hello!"}
    ),
    "/v1/embeddings": TakesBody(
        "Vectors of texts or token ids", EmbeddingsBody, {"input": "Hello!"}
    ),
    "/v1/messages": TakesBody(
        "The same chat in Anthropic's shape", MessagesBody, {"messages": _HELLO, "max_tokens": 32}
    ),
    "/v1/messages/count_tokens": TakesBody(
        "How many tokens such a chat is", MessagesBody, {"messages": _HELLO}
    ),
    "/tokenize": TakesBody(
        "Token ids of a text, or of messages", TokenizeBody, {"prompt": "Hello!"}
    ),
    "/detokenize": TakesBody("The text of token ids", DetokenizeBody, {"tokens": [1, 2]}),
    "/render": TakesBody(
        "The prompt that a chat becomes, nothing generated", ChatBody, {"messages": _HELLO}
    ),
    "/admin/limits": TakesBody(
        "New limits of one key", LimitsBody, {"key": "team-a", "max_concurrency": 4}
    ),
    "/admin/log-level": TakesBody("What is logged", LogLevelBody, {"level": "info"}),
}
"""By path. Routes that are not here are described by their handler's first line."""


def openapi_document(
    routes: Iterable[tuple[str, str, Handler]], *, has_keys: bool
) -> dict[str, object]:
    """OpenAPI 3.1 for `routes`; those on OPEN_PATHS need no key where others do."""
    paths: dict[str, dict[str, object]] = {}
    for method, path, handler in routes:
        operation = _operation(path, handler)
        if path in OPEN_PATHS:
            operation["security"] = []
        paths.setdefault(_plain(path), {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "hal", "version": hal.__version__},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if has_keys else [],
    }


def _operation(path: str, handler: Handler) -> dict[str, object]:
    operation: dict[str, object] = {"summary": _summary(path, handler)}
    if names := re.findall(r"{(\w+)", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if (takes := TAKES_BODY.get(path)) is not None:
        content = {"schema": {"$ref": _SCHEMAS + takes.body.__name__}, "example": takes.example}
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    operation["responses"] = _responses(path)
    return operation


def _responses(path: str) -> dict[str, object]:
    error = "AnthropicError" if path.startswith(ANTHROPIC_PATH) else "Error"
    responses: dict[str, object] = {
        "2XX": {"description": "Done"},
        "default": _answer("Refused or failed", error),
    }
    if path in STATE_PATHS:
        responses["503"] = _answer("Not now", "State")
    return responses


def _answer(description: str, schema: str) -> dict[str, object]:
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + schema}}}
    return {"description": description, "content": content}


def _summary(path: str, handler: Handler) -> str:
    if path in TAKES_BODY:
        return TAKES_BODY[path].summary
    return (handler.__doc__ or "").partition("\n")[0].rstrip(".")


def _plain(path: str) -> str:
    """The path as OpenAPI writes it: without the converters of the router."""
    return path.replace(":path}", "}")


def _schemas() -> dict[str, object]:
    bodies = dict.fromkeys(takes.body for takes in TAKES_BODY.values())
    _, found = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=_SCHEMAS + "{model}"
    )
    text = {"type": "string"}
    param = {"type": ["string", "null"]}
    return {
        **found["$defs"],
        "State": _object(status=text),
        "Error": _object(error=_object(message=text, type=text, param=param, code=text)),
        "AnthropicError": _object(
            type={"const": "error"}, error=_object(type=text, message=text), request_id=text
        ),
    }


def _object(**properties: object) -> dict[str, object]:
    """A schema of an object that has all of them."""
    return {"type": "object", "properties": properties, "required": list(properties)}
