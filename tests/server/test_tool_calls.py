"""Tools over HTTP with the official client: a script writes the answers, the server reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
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

TWO_CALLS = (
    'Let me look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}}'
    '\n</tool_call>\n<tool_call>{"name": "time", "arguments": {}}</tool_call>'
)
FORCED = '[{"name": "weather", "arguments": {"city": "Rome"}}]'
RULES = [
    rule("both", tokens=ids(TWO_CALLS)),
    rule("forced", tokens=ids(FORCED)),
    rule("text", tokens=ids("Just <b>text</b>.")),
    rule("cut", tokens=ids('<tool_call>{"name": "weather", "arguments": {"city": "Par')),
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "time"}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("tools")
    model = write_byte_model(folder / "model")
    template = (
        "{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
        "{% for m in messages %}<user>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{% endfor %}"
    )
    (model / "chat_template.jinja").write_text(template)
    script = write_script(folder / "script.json", RULES)
    with serving(fake_arguments(model, script)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def arguments(word: str, **extra: object) -> dict[str, object]:
    message = {"role": "user", "content": word}
    return {"model": MODEL_NAME, "messages": [message], "tools": TOOLS, **extra}


def test_calls_of_a_whole_answer(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(**arguments("both"))  # type: ignore[call-overload]
    (choice,) = done.choices
    first, second = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert (first.function.name, second.function.name) == ("weather", "time")
    assert json.loads(first.function.arguments) == {"city": "Köln", "days": [1, 2]}
    assert second.function.arguments == "{}"
    assert first.id != second.id and first.type == "function"


def test_a_stream_has_the_same_calls(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(stream=True, **arguments("both"))  # type: ignore[call-overload]
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    num_pieces, content, reasons = 0, "", []
    for chunk in stream:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                assert call.index not in names, "id and name come once"
                names[call.index], texts[call.index] = call.function.name, ""
            texts[call.index] += call.function.arguments
            num_pieces += 1
    assert content == "Let me look."
    assert names == {0: "weather", 1: "time"}
    assert json.loads(texts[0]) == {"city": "Köln", "days": [1, 2]} and texts[1] == "{}"
    assert num_pieces > 20, "arguments come as the model writes them"
    assert reasons[-1] == "tool_calls" and set(reasons[:-1]) == {None}


def test_the_librarys_own_stream_reader_agrees(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**arguments("both")) as stream:  # type: ignore[arg-type]
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.name for call in calls] == ["weather", "time"]


def test_one_call_where_only_one_is_wanted(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(  # type: ignore[call-overload]
        **arguments("both", parallel_tool_calls=False)
    )
    assert [call.function.name for call in done.choices[0].message.tool_calls] == ["weather"]


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_forced_call(client: openai.OpenAI, choice: object) -> None:
    done = client.chat.completions.create(  # type: ignore[call-overload]
        **arguments("forced", tool_choice=choice)
    )
    (call,) = done.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
    assert done.choices[0].message.content is None
    assert done.choices[0].finish_reason == "tool_calls"


def test_text_stays_text(client: openai.OpenAI) -> None:
    for extra in ({}, {"tool_choice": "none"}):
        done = client.chat.completions.create(**arguments("text", **extra))  # type: ignore[call-overload]
        message = done.choices[0].message
        assert (message.content, message.tool_calls) == ("Just <b>text</b>.", None)
        assert done.choices[0].finish_reason == "stop"
    cut = client.chat.completions.create(  # type: ignore[call-overload]
        **arguments("both", tool_choice="none", max_tokens=5)
    )
    assert cut.choices[0].message.content == "Let m"


def test_a_cut_call_says_length(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(**arguments("cut", max_tokens=50))  # type: ignore[call-overload]
    (call,) = done.choices[0].message.tool_calls
    assert call.function.arguments == '{"city'
    assert done.choices[0].finish_reason == "length"


def test_the_template_sees_tools_and_past_calls(server: ServerProcess) -> None:
    past = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
            {"function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        ],
    }
    messages = [past, {"role": "tool", "tool_call_id": "1", "content": "rain"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        done = client.chat.completions.create(  # type: ignore[call-overload]
            model=MODEL_NAME, messages=messages, tools=TOOLS, tool_choice="auto"
        )
    # The echoed prompt has the tools' tags in it: what is no call is content.
    assert "weather" in done.choices[0].message.content
    assert "Oslo" in done.choices[0].message.content
    assert "rain" in done.choices[0].message.content


def test_the_operator_chooses_the_family(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model")
    answer = '[TOOL_CALLS][{"name": "time", "arguments": {"zone": 1}}]'
    script = write_script(tmp_path / "script.json", [rule("x", tokens=ids(answer))])
    flags = [*fake_arguments(model, script), "--tool-call-parser", "mistral"]
    with serving(flags) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            done = client.chat.completions.create(**arguments("x"))  # type: ignore[call-overload]
    assert done.choices[0].message.tool_calls[0].function.arguments == '{"zone": 1}'


def test_render_shows_the_prompt(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/render", json=arguments("hi", seed=1), timeout=30)
    rendered = answer.json()
    assert rendered["prompt"] == "<tool_call>weather<tool_call>time<user>hi"
    assert (
        rendered["count"] == len(rendered["tokens"]) == len("<tool_call>weather<tool_call>time") + 3
    )


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rerank", "/v1/load_lora_adapter"])
def test_what_is_missing_says_so(server: ServerProcess, path: str) -> None:
    answer = httpx.post(f"{server.url}{path}", json={"input": "x"}, timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (501, "not_implemented")
    assert error["message"].startswith("not supported yet: ")
