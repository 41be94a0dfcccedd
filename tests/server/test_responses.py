"""POST /v1/responses with the official client: whole, streamed, tools, history, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
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

CALLS = (
    'On it. <tool_call>{"name": "look", "arguments": {"city": "Köln"}}</tool_call>'
    '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
)
RULES = [
    rule("call!", tokens=ids(CALLS)),
    rule("nan!", tokens=ids("abcdef"), error_at=3),
    rule("cached!", tokens=ids("yes"), num_cached_tokens=4),
]
TOOLS: Any = [
    {
        "type": "function",
        "name": "look",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("responses")
    model = write_byte_model(folder / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    script = write_script(folder / "script.json", RULES)
    with serving(fake_arguments(model, script)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def responses(server: ServerProcess) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client.responses


def test_a_whole_response(responses: Any) -> None:
    done = responses.create(model=MODEL_NAME, input="cached!", instructions="Be kind.")
    assert done.output_text == "yes"
    assert (done.status, done.object, done.model) == ("completed", "response", MODEL_NAME)
    assert done.usage.input_tokens == len("[system]Be kind.[user]cached!")
    assert done.usage.input_tokens_details.cached_tokens == 4
    assert done.usage.output_tokens == 4
    assert done.store is False and done.instructions == "Be kind."


def test_a_cut_response_is_incomplete(responses: Any) -> None:
    done = responses.create(model=MODEL_NAME, input="abcdef", max_output_tokens=16)
    assert (done.status, done.incomplete_details) == ("completed", None)
    cut = responses.create(model=MODEL_NAME, input="abcdef", max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete"


def test_calls(responses: Any) -> None:
    done = responses.create(model=MODEL_NAME, input="call!", tools=TOOLS)
    message, first, second = done.output
    assert message.content[0].text == "On it."
    assert (first.type, first.name, json.loads(first.arguments)) == (
        "function_call",
        "look",
        {"city": "Köln"},
    )
    assert second.arguments == "{}" and second.call_id != first.call_id
    single = responses.create(
        model=MODEL_NAME, input="call!", tools=TOOLS, parallel_tool_calls=False
    )
    assert [item.type for item in single.output] == ["message", "function_call"]


def test_a_stream_builds_the_same_response(responses: Any) -> None:
    events = list(responses.create(model=MODEL_NAME, input="call!", tools=TOOLS, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-1] == "response.completed"
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == "On it."
    arguments = {0: "", 1: "", 2: ""}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            arguments[event.output_index] += event.delta
    assert json.loads(arguments[1]) == {"city": "Köln"} and arguments[2] == "{}"
    final = events[-1].response
    done = [e.item for e in events if e.type == "response.output_item.done"]
    assert [item.to_dict() for item in done] == [item.to_dict() for item in final.output]
    assert [i.type for i in final.output] == ["message", "function_call", "function_call"]


def test_the_librarys_own_stream_reader_agrees(responses: Any) -> None:
    with responses.stream(model=MODEL_NAME, input="call!", tools=TOOLS) as stream:
        final = stream.get_final_response()
    assert final.output_text == "On it."
    assert [item.type for item in final.output] == ["message", "function_call", "function_call"]


def test_a_stream_that_fails_ends_in_an_error_event(responses: Any) -> None:
    events = list(responses.create(model=MODEL_NAME, input="nan!", stream=True))
    assert (events[-1].type, events[-1].code) == ("error", "numerical_error")


def test_history(responses: Any) -> None:
    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"city": "Rom"}'},
        {"type": "function_call_output", "call_id": "1", "output": "rain"},
    ]
    done = responses.create(model=MODEL_NAME, input=items)
    assert done.output_text == "[system]D[user]u[assistant]a[assistant]Rom[tool]rain"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "1"}]}, "input.0.type"),
        ({"input": [{"type": "function_call"}]}, "input.0"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.type",
        ),
        ({"input": "x" * 600}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10_000}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"previous_response_id": "resp-1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
    ],
)
def test_what_is_refused_is_named(responses: Any, extra: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        responses.create(**{"model": MODEL_NAME, "input": "x", **extra})
    assert caught.value.param == param
    assert param in caught.value.message or caught.value.code == "context_length_exceeded"
