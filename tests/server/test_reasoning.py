"""Reasoning over HTTP, in every API that shows it: a script writes the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_serving import (
    MODEL_NAME,
    VOCAB_SIZE,
    ServerProcess,
    fake_arguments,
    ids,
    rule,
    serving,
    write_byte_model,
    write_script,
)
from openai.types.chat import ChatCompletion
from tokenizers import AddedToken, Tokenizer

THOUGHT = "Is Köln <b>far</b>?"
CALL = '<tool_call>{"name": "look", "arguments": {"city": "Köln"}}</tool_call>'
RULES = [
    rule("plain", tokens=ids(f"<think>\n{THOUGHT}\n</think>\n\nNot far.")),
    rule("call", tokens=ids(f"<think>{THOUGHT} {CALL}</think>{CALL}")),
    rule("cut", tokens=ids("<think>On and on")),
    rule("opened", tokens=ids(f"{THOUGHT}</think>Not far.")),
    rule("direct", tokens=ids("Yes.")),
    rule("forced", tokens=ids('<think>a</think>[{"name": "look", "arguments": {}}]')),
    rule("two", choices=[ids("<think>abc</think>1"), ids("2")]),
]
TEMPLATE = (
    "{% for m in messages %}<user>{{ m.content }}{% if m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{% endfor %}"
    "{% if enable_thinking is defined %}{{ '<think>\n' if enable_thinking else 'off' }}{% endif %}"
)
TOOLS: Any = [{"type": "function", "function": {"name": "look"}}]


def serve(folder: Path, *arguments: str) -> Any:
    model = write_byte_model(folder / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    script = write_script(folder / "script.json", RULES)
    return serving([*fake_arguments(model, script), *arguments])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(tmp_path_factory.mktemp("reasoning")) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, verify=False) as client:
        yield client


def fields(word: str, **extra: Any) -> dict[str, Any]:
    return {"model": MODEL_NAME, "messages": [{"role": "user", "content": word}], **extra}


def opened(**extra: Any) -> dict[str, Any]:
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    return fields("opened", extra_body=kwargs, **extra)


def streamed(client: openai.OpenAI, body: dict[str, Any]) -> tuple[dict[str, str], int]:
    """Reasoning, content and finish reason, joined; tokens of the reasoning."""
    request: Any = {**body, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**request))
    found = {"reasoning_content": "", "content": "", "finish_reason": ""}
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        delta = choice.delta.model_dump(exclude_none=True)
        for name in ("reasoning_content", "content"):
            assert not (name == "reasoning_content" and found["content"] and name in delta)
            found[name] += delta.get(name, "")
        found["finish_reason"] += choice.finish_reason or ""
    return found, chunks[-1].usage.completion_tokens_details.reasoning_tokens


@pytest.mark.parametrize(
    ("body", "reasoning", "content", "num_tokens"),
    [
        (fields("plain"), THOUGHT, "Not far.", len(f"<think>\n{THOUGHT}\n</think>".encode())),
        (opened(), THOUGHT, "Not far.", len(f"{THOUGHT}</think>".encode())),
        (fields("direct"), None, "Yes.", 0),
        (fields("cut", max_tokens=16), "On and on", None, 16),
    ],
    ids=["marked by the model", "opened by the template", "none", "cut"],
)
def test_an_answer_is_split_and_its_stream_alike(
    client: openai.OpenAI,
    body: dict[str, Any],
    reasoning: str | None,
    content: str | None,
    num_tokens: int,
) -> None:
    done: ChatCompletion = client.chat.completions.create(**body)
    (choice,) = done.choices
    message = choice.message.model_dump()
    assert message.get("reasoning_content") == reasoning
    assert message["content"] == content
    assert done.usage is not None and done.usage.completion_tokens_details is not None
    assert done.usage.completion_tokens_details.reasoning_tokens == num_tokens
    expected = {
        "reasoning_content": reasoning or "",
        "content": content or "",
        "finish_reason": choice.finish_reason,
    }
    assert streamed(client, body) == (expected, num_tokens)


def test_calls_count_behind_the_reasoning_only(client: openai.OpenAI) -> None:
    done: ChatCompletion = client.chat.completions.create(tools=TOOLS, **fields("call"))
    message = done.choices[0].message
    assert message.model_dump()["reasoning_content"] == f"{THOUGHT} {CALL}"
    assert message.tool_calls is not None and len(message.tool_calls) == 1
    call = message.tool_calls[0]
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Köln"}
    assert (message.content, done.choices[0].finish_reason) == (None, "tool_calls")
    forced = client.chat.completions.create(tools=TOOLS, tool_choice="required", **fields("forced"))
    assert len(forced.choices[0].message.tool_calls or ()) == 1
    assert forced.choices[0].message.model_dump()["reasoning_content"] == "a"


def test_each_choice_has_its_own(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(n=2, **fields("two"))
    found = [choice.message.model_dump() for choice in done.choices]
    assert [each.get("reasoning_content") for each in found] == ["abc", None]
    assert [each["content"] for each in found] == ["1", "2"]
    usage = done.usage
    assert usage is not None and usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == len("<think>abc</think>")


def test_earlier_reasoning_reaches_the_template(http: httpx.Client) -> None:
    past = {"role": "assistant", "content": "x", "reasoning_content": "why"}
    body = {"messages": [past]}
    assert http.post("/render", json=body).json()["prompt"] == "<user>x<think>why</think>"


def test_messages_have_thinking_blocks(http: httpx.Client) -> None:
    body = fields("plain", max_tokens=200)
    whole = http.post("/v1/messages", json=body).json()["content"]
    assert whole == [
        {"type": "thinking", "thinking": THOUGHT, "signature": ""},
        {"type": "text", "text": "Not far."},
    ]
    lines = http.post("/v1/messages", json=body | {"stream": True}).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line[:5] == "data:"]
    blocks = [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"]
    deltas = [e["delta"] for e in events if e["type"] == "content_block_delta"]
    assert blocks == ["thinking", "text"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == THOUGHT
    assert "".join(delta.get("text", "") for delta in deltas) == "Not far."


def test_thinking_disabled_is_told_to_the_template(http: httpx.Client) -> None:
    body = fields("abc", max_tokens=9) | {"thinking": {"type": "disabled"}}
    num_off = http.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    assert num_off == len("<user>") - 5 + len("abcoff")
    refused = http.post("/v1/messages", json=body | {"thinking": {"type": "enabled"}})
    assert (refused.status_code, refused.json()["type"]) == (400, "error")


def test_responses_have_reasoning_items(client: openai.OpenAI) -> None:
    done = client.responses.create(model=MODEL_NAME, input="plain")
    reasoning, message = done.output
    assert reasoning.type == "reasoning" and message.type == "message"
    assert [part.text for part in reasoning.content or ()] == [THOUGHT]
    assert done.output_text == "Not far."
    num_reasoning = len(f"<think>\n{THOUGHT}\n</think>".encode())
    assert done.usage is not None
    assert done.usage.output_tokens_details.reasoning_tokens == num_reasoning
    events = list(client.responses.create(model=MODEL_NAME, input="plain", stream=True))
    thoughts = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
    assert "".join(thoughts) == THOUGHT
    assert events[-1].type == "response.completed"
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]


def test_special_tokens_may_mark_it(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("[THINK]", "[/THINK]")])
    backend.save(str(model / "tokenizer.json"))
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{# [THINK] [/THINK] #}"
    )
    marked = [VOCAB_SIZE, *ids("a"), VOCAB_SIZE + 1, *ids("b")]
    rules = [rule("marked", tokens=marked)]
    script = write_script(tmp_path / "script.json", rules, vocab_size=VOCAB_SIZE + 2)
    with serving(fake_arguments(model, script)) as process:
        url = f"{process.wait_ready().url}/v1/chat/completions"
        message = httpx.post(url, json=fields("marked")).json()["choices"][0]["message"]
        refused = httpx.post(url, json=fields("marked", guided_regex="b")).json()["error"]
    assert message == {"role": "assistant", "reasoning_content": "a", "content": "b"}
    assert (refused["code"], refused["param"]) == ("unsupported_parameter", "guided_regex")
    assert "--reasoning-parser none" in refused["message"]


def test_the_operator_can_leave_the_text_whole(tmp_path: Path) -> None:
    with serve(tmp_path, "--reasoning-parser", "none") as process:
        url = f"{process.wait_ready().url}/v1/chat/completions"
        message = httpx.post(url, json=fields("plain"), timeout=30).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": RULES_TEXT}


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    with serve(tmp_path, "--reasoning-parser", "qwen") as process:
        assert process.wait() != 0
        assert "deepseek-r1, mistral, none, qwen3" in "\n".join(process.error_lines)


RULES_TEXT = f"<think>\n{THOUGHT}\n</think>\n\nNot far."
