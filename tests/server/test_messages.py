"""POST /v1/messages in Anthropic's shape: by hand, and with the official client where it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_serving import (
    MODEL_NAME,
    ServerProcess,
    fake_arguments,
    ids,
    rule,
    serving,
    write_byte_model,
    write_script,
)

from hal.server.errors import overloaded
from hal.server.wire import error_answer

CALL = 'On it. <tool_call>{"name": "look", "arguments": {"city": "Köln"}}</tool_call>'
FORCED = '[{"name": "look", "arguments": {"city": "Rome"}}]'
RULES = [
    rule("call!", tokens=ids(CALL)),
    rule("forced!", tokens=ids(FORCED)),
    rule("nan!", tokens=ids("abcdef"), error_at=3),
    rule("cached!", tokens=ids("yes"), num_cached_tokens=4),
]
TOOLS: Any = [
    {
        "name": "look",
        "description": "Look at a city",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("messages")
    model = write_byte_model(folder / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    script = write_script(folder / "script.json", RULES)
    with serving(fake_arguments(model, script), HAL_API_KEY="sesame") as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    headers = {"x-api-key": "sesame"}
    with httpx.Client(base_url=server.url, headers=headers, verify=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Any]:
    anthropic = pytest.importorskip("anthropic", reason="the official client is optional")
    with anthropic.Anthropic(base_url=server.url, api_key="sesame", max_retries=0) as client:
        yield client


def fields(word: str, **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": word}]
    return {"model": MODEL_NAME, "max_tokens": 100, "messages": messages, **extra}


def events_of(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    frames = [f for f in answer.text.split("\n\n") if f and not f.startswith(":")]
    pairs = [frame.split("\n", 1) for frame in frames]
    return [(a.removeprefix("event: "), json.loads(b.removeprefix("data: "))) for a, b in pairs]


def test_a_whole_message(http: httpx.Client) -> None:
    answer = http.post("/v1/messages", json=fields("cached!", system="Be kind."))
    assert answer.status_code == 200, answer.text
    message = answer.json()
    assert message["content"] == [{"type": "text", "text": "yes"}]
    assert (message["type"], message["role"], message["model"]) == (
        "message",
        "assistant",
        MODEL_NAME,
    )
    assert (message["stop_reason"], message["stop_sequence"]) == ("end_turn", None)
    num_prompt = len("<system>Be kind.<user>") - 5 + len("cached!")
    assert message["usage"] == {
        "input_tokens": num_prompt - 4,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "output_tokens": 4,
    }
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_reasons_to_stop(http: httpx.Client) -> None:
    cut = http.post("/v1/messages", json=fields("abcdef", max_tokens=3)).json()
    assert (cut["stop_reason"], cut["usage"]["output_tokens"]) == ("max_tokens", 3)
    stopped = http.post("/v1/messages", json=fields("abcdef", stop_sequences=["de"])).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "de")


def test_events_of_a_stream(http: httpx.Client) -> None:
    body = fields("call!", tools=TOOLS, stream=True)
    answer = http.post("/v1/messages", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer)
    assert all(name == value["type"] for name, value in events)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    blocks = [v["content_block"] for n, v in events if n == "content_block_start"]
    assert [b["type"] for b in blocks] == ["text", "tool_use"]
    assert blocks[1]["name"] == "look" and blocks[1]["input"] == {}
    deltas = [(v["index"], v["delta"]) for n, v in events if n == "content_block_delta"]
    text = "".join(d["text"] for i, d in deltas if i == 0)
    arguments = "".join(d["partial_json"] for i, d in deltas if i == 1)
    assert text == "On it." and json.loads(arguments) == {"city": "Köln"}
    ending = events[-2][1]
    assert ending["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert ending["usage"]["output_tokens"] > 40


def test_a_stream_that_fails_ends_in_an_error_event(http: httpx.Client) -> None:
    events = events_of(http.post("/v1/messages", json=fields("nan!", stream=True)))
    name, value = events[-1]
    assert name == "error" and value["error"]["type"] == "api_error"
    assert "HAL-E610" in value["error"]["message"]
    whole = http.post("/v1/messages", json=fields("nan!"))
    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "api_error")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "look"}])
def test_a_forced_call(http: httpx.Client, choice: object) -> None:
    body = fields("forced!", tools=TOOLS, tool_choice=choice)
    message = http.post("/v1/messages", json=body).json()
    (block,) = message["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "look", {"city": "Rome"})
    assert message["stop_reason"] == "tool_use"


def test_the_template_sees_the_whole_conversation(http: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "tool_use", "id": "1", "name": "look", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "rain"},
                {"type": "text", "text": "so"},
            ],
        },
    ]
    body = {"messages": messages, "max_tokens": 200, "system": [{"type": "text", "text": "S"}]}
    echoed = http.post("/v1/messages", json=body).json()["content"][0]["text"]
    # <user> is a control token of the byte model and not shown.
    assert echoed == "<system>Sab<assistant>tOslo<tool>rainso"


def test_counting_tokens(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "four"}], "tools": TOOLS}
    counted = http.post("/v1/messages/count_tokens", json=body).json()
    assert counted == {"input_tokens": len("[look]") + 1 + 4}


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"max_tokens": None}, "max_tokens is required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not supported yet"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": ""}]}, "tools.0.function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_refused_is_named(http: httpx.Client, extra: dict[str, Any], says: str) -> None:
    answer = http.post("/v1/messages", json=fields("x", **extra))
    assert answer.status_code == 400
    value = answer.json()
    assert value.keys() == {"type", "error", "request_id"}
    assert value["type"] == "error" and value["request_id"] == answer.headers["request-id"]
    assert value["error"]["type"] == "invalid_request_error"
    assert says in value["error"]["message"]


def test_other_errors_have_their_types(http: httpx.Client, server: ServerProcess) -> None:
    other = fields("x", model="claude")
    assert http.post("/v1/messages", json=other).json()["error"]["type"] == "not_found_error"
    scope = {"path": "/v1/messages/count_tokens", "hal_request_id": "r"}
    busy = error_answer(overloaded("full", 8), scope)
    assert (busy.status, json.loads(busy.body)["error"]["type"]) == (529, "overloaded_error")
    assert busy.headers == {"retry-after": "8"}
    for headers in ({}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}):
        answer = httpx.post(f"{server.url}/v1/messages", json=fields("x"), headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
    get = http.get("/v1/messages")
    assert (get.status_code, get.json()["type"]) == (405, "error")


def test_the_official_client(client: Any) -> None:
    message = client.messages.create(**fields("call!", tools=TOOLS))
    text, call = message.content
    assert (text.text, call.name, call.input) == ("On it.", "look", {"city": "Köln"})
    assert message.stop_reason == "tool_use"
    counted = client.messages.count_tokens(
        model=MODEL_NAME, messages=[{"role": "user", "content": "four"}]
    )
    assert counted.input_tokens == 5
    with client.messages.stream(**fields("call!", tools=TOOLS)) as stream:
        streamed = stream.get_final_message()
    assert [b.type for b in streamed.content] == ["text", "tool_use"]
    assert streamed.content[1].input == {"city": "Köln"}
    assert streamed.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == message.usage.output_tokens


def test_the_official_clients_errors(client: Any) -> None:
    anthropic = pytest.importorskip("anthropic")
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**fields("x", max_tokens=0))
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**fields("x", model="claude"))
    with (
        pytest.raises(anthropic.APIStatusError, match="HAL-E610"),
        client.messages.stream(**fields("nan!")) as stream,
    ):
        stream.get_final_message()


def test_without_a_template_it_is_refused(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model", has_template=False)
    script = write_script(tmp_path / "script.json")
    with serving(fake_arguments(model, script)) as server:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/v1/messages", json=fields("x"))
    assert answer.status_code == 400
    assert "no default chat template" in answer.json()["error"]["message"]
