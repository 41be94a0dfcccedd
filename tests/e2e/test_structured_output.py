"""Structured output over HTTP: the official client, the real engine process, the embedded model."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from fake_serving import ServerProcess, children_of, is_alive, serving, wait_for
from pydantic import BaseModel, Field

MODEL = "hal-tiny"
QUESTION = "Extract name and age as JSON: Tom is 12 years old."
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = f"<|user|>{QUESTION}<|end|><|assistant|>"


class Person(BaseModel):
    """What the client library turns into a schema and the answer into."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


SCHEMA = Person.model_json_schema()
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving([MODEL, "--device", "cpu", "--threads", "1", "--offline"]) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_parse_returns_the_model(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(
        model=MODEL,
        messages=MESSAGES,  # type: ignore[arg-type]
        response_format=Person,
        temperature=1.5,
        seed=3,
        max_tokens=100,
    )
    assert isinstance(done.choices[0].message.parsed, Person)
    assert done.choices[0].finish_reason == "stop"


def test_a_stream_is_the_same_answer(client: openai.OpenAI) -> None:
    arguments = {
        "model": MODEL,
        "messages": MESSAGES,
        "response_format": JSON_SCHEMA,
        "temperature": 1.2,
        "seed": 5,
        "n": 3,
        "max_tokens": 100,
    }
    whole = client.chat.completions.create(**arguments)  # type: ignore[call-overload]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(stream=True, **arguments):  # type: ignore[call-overload]
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    for choice in whole.choices:
        if choice.finish_reason == "stop":
            Person.model_validate_json(choice.message.content)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[a-c]{3,5}-[0-9]{2}"}, "[a-c]{3,5}-[0-9]{2}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'start: "a" /[xy]{2}/'}, "a[xy]{2}"),
        ({"guided_json": {"enum": [1, 22]}}, "1|22"),
        ({"guided_json": '{"const": "x"}'}, '"x"'),
        ({"structured_outputs": {"choice": ["on", "off"]}}, "on|off"),
        ({"response_format": {"type": "json_object"}}, r"(?s)\{.*\}"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_completions_under_vllms_names(
    client: openai.OpenAI, extra: dict[str, object], pattern: str
) -> None:
    done = client.completions.create(
        model=MODEL, prompt=PROMPT, temperature=1.0, seed=1, max_tokens=150, n=4, extra_body=extra
    )
    whole = [choice.text for choice in done.choices if choice.finish_reason == "stop"]
    assert whole and all(re.fullmatch(pattern, text) for text in whole), whole


@pytest.mark.parametrize(
    ("extra", "field", "code", "says"),
    [
        (
            {"response_format": {**JSON_SCHEMA, "json_schema": {"schema": {"not": {}}}}},
            "response_format",
            "invalid_schema",
            "'not'",
        ),
        ({"guided_regex": "(a"}, "guided_regex", "invalid_schema", "unclosed"),
        ({"guided_json": {"uniqueItems": True}}, "guided_json", "invalid_schema", "uniqueItems"),
        ({"guided_choice": []}, "guided_choice", "invalid_value", "non-empty"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value", "exactly one"),
        ({"structured_outputs": {"xml": 1}}, "structured_outputs", "invalid_value", "xml"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "guided_regex",
            "invalid_value",
            "both",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
            "required",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value", "xml"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "invalid_value", "grammar"),
    ],
)
def test_what_is_refused_is_named(
    client: openai.OpenAI, extra: dict[str, object], field: str, code: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,  # type: ignore[arg-type]
            stream=True,
            extra_body=extra,
        )
    assert (caught.value.param, caught.value.code) == (field, code)
    assert says in caught.value.message


def test_a_lost_worker_is_replaced(server: ServerProcess, client: openai.OpenAI) -> None:
    def ask(text: str) -> str:
        done = client.completions.create(
            model=MODEL, prompt="Say: ", max_tokens=20, extra_body={"guided_choice": [text]}
        )
        return done.choices[0].text

    assert ask("one") == "one"
    (worker,) = children_of(server.engine_pid())
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not is_alive(worker), server)
    assert ask("two") == "two"
    assert worker not in children_of(server.engine_pid())


def test_others_are_served_while_a_grammar_is_compiled(server: ServerProcess) -> None:
    """And a client that leaves meanwhile leaves nothing behind."""
    slow = {"enum": [f"{i:06d}" * 3 for i in range(9_000)]}
    body = {"prompt": "x", "max_tokens": 100, "guided_json": slow}
    with httpx.Client(base_url=server.url, verify=False) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json=body, timeout=0.02)
        plain = {"prompt": "Hello", "max_tokens": 4}
        assert http.post("/v1/completions", json=plain, timeout=30).status_code == 200
    wait_for(lambda: server.metric("num_requests_running") == 0, server)
    assert json.loads(server.get("/ready").text) == {"status": "ready"}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
                "required": ["a", "b"],
                "additionalProperties": False,
                "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "pick",
            "parameters": {
                "type": "object",
                "properties": {"color": {"enum": ["red", "blue"]}},
                "required": ["color"],
                "additionalProperties": False,
            },
        },
    },
]
CHECKS: dict[str, Callable[..., bool]] = {
    "add": lambda a, b: 0 <= a <= 99 and 0 <= b <= 99,
    "pick": lambda color: color in ("red", "blue"),
}


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"add", "pick"}),
        ({"type": "function", "function": {"name": "pick"}}, {"pick"}),
    ],
    ids=["required", "named"],
)
def test_a_forced_call_keeps_to_its_schema(
    client: openai.OpenAI, choice: object, names: set[str]
) -> None:
    create: Any = client.chat.completions.create
    done = create(
        model=MODEL,
        messages=MESSAGES,
        tools=TOOLS,
        tool_choice=choice,
        parallel_tool_calls=False,
        temperature=1.5,
        seed=2,
        n=8,
        max_tokens=100,
    )
    calls: list[Any] = [
        c.message.tool_calls for c in done.choices if c.finish_reason == "tool_calls"
    ]
    assert len(calls) > 4
    for found in calls:
        (call,) = found
        assert call.function.name in names
        assert CHECKS[call.function.name](**json.loads(call.function.arguments))


def test_the_model_calls_a_tool_by_itself(client: openai.OpenAI) -> None:
    """hal-tiny was trained to; its answers otherwise are text."""
    create: Any = client.chat.completions.create
    done = create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "description": "the weather of a city",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                },
            }
        ],
        temperature=0,
    )
    (call,) = done.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert done.choices[0].finish_reason == "tool_calls"
