"""Bodies that no client would send: an answer or a 4xx in the API's shape, never a 5xx."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/render")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FIELDS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
    "input": "hi",
    "max_tokens": 4,
    "max_output_tokens": 4,
    "tools": [TOOL],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    "guided_json": {"type": "object"},
    "guided_choice": ["a"],
    "structured_outputs": {"regex": "a"},
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
    "system": [{"type": "text", "text": "s"}],
    "instructions": "i",
    "stop_sequences": ["x"],
    "thinking": {"type": "disabled"},
    "stream": False,
    "chat_template_kwargs": {"think": 1},
}
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["user", "tool", "function", "text", "tool_use", "tool_result", "json_schema"]),
)
_KEYS = st.one_of(
    st.sampled_from(["type", "role", "content", "text", "name", "function", "id", "input"]),
    st.sampled_from(["arguments", "tool_calls", "call_id", "output", "schema", "$ref", "format"]),
    st.text(max_size=4),
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=8,
)


def changed(value: Any, data: st.DataObject) -> Any:
    """The value with one place of it replaced by anything."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: changed(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        index = data.draw(st.integers(0, len(value) - 1))
        return [*value[:index], changed(value[index], data), *value[index + 1 :]]
    return data.draw(VALUES)


def check(http: httpx.Client, route: str, body: object) -> None:
    answer = http.post(
        route, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"] and len(error["message"]) < 2000


@pytest.mark.parametrize("route", ROUTES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_one_field_is_anything(http: httpx.Client, route: str, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True))
    needed = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(route, "messages")
    body = {name: FIELDS[name] for name in {*names, needed, "max_tokens"}}
    name = data.draw(st.sampled_from(sorted(body)))
    check(http, route, {**body, name: changed(body[name], data)})


def deep_values(field: str, depth: int) -> list[Any]:
    deep: Any = {"type": "object"}
    for _ in range(depth):
        deep = {"properties": deep}
    if field == "tools":
        function = {"name": "f", "parameters": deep}
        return [deep, [{"type": "function", "function": function}, {"name": "f", **function}]]
    if field in ("messages", "input"):
        call = {"function": {"name": "f", "arguments": "[" * depth + "]" * depth}}
        return [deep, [{"role": "user", "content": [deep]}], [{"tool_calls": [call]}]]
    return [deep, [deep]]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("depth", [120, 400])
def test_fields_are_deep(http: httpx.Client, route: str, depth: int) -> None:
    needed = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(route, "messages")
    for field in FIELDS:
        for value in deep_values(field, depth):
            body = {needed: FIELDS[needed], "max_tokens": 4, field: value}
            check(http, route, body)
            if field == "tools":
                check(http, route, {**body, "tool_choice": "required"})


def test_the_depth_that_is_too_much(http: httpx.Client) -> None:
    for depth, status in ((126, 200), (127, 200), (128, 400)):
        text = '{"prompt": "x", "max_tokens": 1, "other": ' + "[" * depth + "]" * depth + "}"
        answer = http.post(
            "/v1/completions", content=text, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status
    assert "nested deeper than 128 levels" in answer.json()["error"]["message"]
