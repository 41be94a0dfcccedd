"""Every wrong body gets a 400 that names the field; nothing is coerced, nothing swallowed."""

from __future__ import annotations

import json

import httpx
import pytest
from fake_serving import EOS, MODEL_NAME, VOCAB_SIZE, ServerProcess

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]

Fields = dict[str, object]

WRONG_COMPLETIONS: list[tuple[Fields, str | None, str]] = [
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [""]}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt", "invalid_value"),
    ({"prompt": 5}, "prompt", "invalid_value"),
    ({"prompt": None}, "prompt", "invalid_value"),
    ({"prompt": ["a", 1]}, "prompt", "invalid_value"),
    ({"prompt": [True]}, "prompt", "invalid_value"),
    ({"prompt": [VOCAB_SIZE]}, "prompt", "invalid_value"),
    ({"prompt": [-1]}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 129}, "prompt", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "1"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"top_k": 1.5}, "top_k", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"n": "3"}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"n": 1.0}, "n", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 512}, "max_tokens", "context_length_exceeded"),
    ({"prompt": "x" * 512}, "prompt", "context_length_exceeded"),
    ({"prompt": "x" * 100_000}, "prompt", "context_length_exceeded"),
    ({"min_tokens": 17}, "min_tokens", "invalid_value"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": True}, "logprobs", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", ""]}, "stop", "invalid_value"),
    ({"stop": [1]}, "stop", "invalid_value"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value"),
    ({"stop": "x" * 1_000_000}, "stop", "invalid_value"),
    ({"stop_token_ids": ["1"]}, "stop_token_ids.0", "invalid_value"),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids", "invalid_value"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"1": "2"}}, "logit_bias.1", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias[1]", "invalid_value"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        "invalid_value",
    ),
    ({"ignore_eos": 1}, "ignore_eos", "invalid_value"),
    ({"model": 3}, "model", "invalid_value"),
    ({"prompt": ["a"] * 9, "n": 128}, "n", "invalid_value"),
    ({"priority": 2**31}, "priority", "invalid_value"),
    ({"timeout_s": 0}, "timeout_s", "invalid_value"),
    ({"timeout_s": 1e9}, "timeout_s", "invalid_value"),
    ({"echo": True}, "echo", "unsupported_parameter"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"prompt_logprobs": 0}, "prompt_logprobs", "unsupported_parameter"),
    ({"tools": []}, "tools", "unsupported_parameter"),
    ({"guided_json": 3}, "guided_json", "invalid_value"),
]

TOOL = [{"type": "function", "function": {"name": "f"}}]

WRONG_CHATS: list[tuple[Fields, str | None, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": ["hi"]}, "messages.0", "invalid_value"),
    ({"messages": [{"content": "a"}]}, "messages.0.role", "missing_required_parameter"),
    ({"messages": [{"role": "boss", "content": "a"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages.0.content", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.type",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "messages.0.content.0.text",
        "invalid_value",
    ),
    (
        {"messages": [{"role": "user", "content": "x" * 600}]},
        "messages",
        "context_length_exceeded",
    ),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": 1}, "logprobs", "invalid_value"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"tools": []}, "tools", "invalid_value"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools.0.function", "invalid_value"),
    (
        {"tools": [{"type": "function", "function": {"name": ""}}]},
        "tools.0.function.name",
        "invalid_value",
    ),
    ({"tools": TOOL * 2}, "tools", "invalid_value"),
    ({"tools": TOOL * 129}, "tools", "invalid_value"),
    ({"tools": TOOL, "tool_choice": "any"}, "tool_choice", "invalid_value"),
    (
        {"tools": TOOL, "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "invalid_value",
    ),
    ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
        "messages.0.tool_calls.0",
        "invalid_value",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ({"chat_template": "{{ 1 }}"}, "chat_template", "unsupported_parameter"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
]


def check(answer: httpx.Response, status: int, code: str, param: str | None) -> str:
    error = answer.json()["error"]
    assert answer.json().keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    message = error["message"]
    assert isinstance(message, str)
    assert message
    return message


@pytest.mark.parametrize(("fields", "param", "code"), WRONG_COMPLETIONS)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_completion(
    http: httpx.Client, fields: Fields, param: str | None, code: str, stream: bool
) -> None:
    body: Fields = {"prompt": "hi", **fields}
    if stream and "stream" not in fields and "stream_options" not in fields:
        body["stream"] = True
    message = check(http.post(COMPLETIONS, json=body), 400, code, param)
    assert param is None or param in message or code == "context_length_exceeded"
    assert len(message) < 400


@pytest.mark.parametrize(("fields", "param", "code"), WRONG_CHATS)
def test_wrong_chat(http: httpx.Client, fields: Fields, param: str | None, code: str) -> None:
    check(http.post(CHAT, json={"messages": USER, **fields}), 400, code, param)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a", "logit_bias": {"1": NaN}}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": ' + b"[" * 100_000,
        b"[1]",
        b'"text"',
        b"null",
    ],
)
def test_a_body_that_is_no_json_object(http: httpx.Client, raw: bytes) -> None:
    headers = {"content-type": "application/json"}
    check(http.post(COMPLETIONS, content=raw, headers=headers), 400, "invalid_value", None)


def test_missing_field(http: httpx.Client) -> None:
    check(http.post(COMPLETIONS, json={}), 400, "missing_required_parameter", "prompt")
    check(http.post(CHAT, json={}), 400, "missing_required_parameter", "messages")


def test_unknown_model(http: httpx.Client) -> None:
    for path, fields in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": USER})):
        answer = http.post(path, json={"model": "gpt-9", **fields})
        assert MODEL_NAME in check(answer, 404, "model_not_found", "model")


def test_neutral_values_of_unsupported_fields_are_fine(http: httpx.Client) -> None:
    body = {
        "prompt": "a",
        "echo": False,
        "best_of": 1,
        "suffix": None,
        "response_format": {"type": "text"},
        "tools": None,
    }
    answer = http.post(COMPLETIONS, json=body)
    assert answer.status_code == 200
    assert "x-hal-ignored" not in answer.headers


def test_an_echo_of_one_is_not_false(http: httpx.Client) -> None:
    check(
        http.post(COMPLETIONS, json={"prompt": "a", "echo": 0}),
        400,
        "unsupported_parameter",
        "echo",
    )


def test_template_variables(http: httpx.Client) -> None:
    body = {"messages": USER, "chat_template_kwargs": {"think": 7}}
    answer = http.post(CHAT, json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "hiT7"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/completions/", 404, "not_found"),
        ("GET", COMPLETIONS, 405, "method_not_allowed"),
        ("DELETE", CHAT, 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
    ],
)
def test_wrong_paths(http: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    headers = {"content-type": "application/json"}
    check(http.request(method, path, headers=headers), status, code, None)


def test_numbers_of_an_impossible_request(http: httpx.Client) -> None:
    answer = http.post(COMPLETIONS, json={"prompt": "x" * 100, "max_tokens": 500})
    message = check(answer, 400, "context_length_exceeded", "max_tokens")
    assert all(number in message for number in ("100", "500", "600", "512", "412"))


def test_tokenize_and_back(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "é!", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == 3
    assert answer["max_model_len"] == 512
    assert answer["token_strs"] == ["\ufffd", "\ufffd", "!"]
    back = http.post("/detokenize", json={"tokens": [*answer["tokens"], EOS]})
    assert back.json() == {"prompt": "é!<eos>"}
    chat = http.post("/tokenize", json={"messages": USER}).json()
    assert chat["count"] == 3
    check(http.post("/tokenize", json={}), 400, "invalid_value", "prompt")
    check(http.post("/detokenize", json={"tokens": [VOCAB_SIZE]}), 400, "invalid_value", "tokens")
    check(http.post("/detokenize", json={"tokens": "1"}), 400, "invalid_value", "tokens")


def test_status_routes(http: httpx.Client, server: ServerProcess) -> None:
    assert http.get("/live").json() == {"status": "alive"}
    assert http.get("/ready").json() == {"status": "ready"}
    assert http.get("/health").json() == {"status": "healthy"}
    assert http.get("/version").json().keys() == {"version"}
    plan = http.get("/hal/plan").json()
    assert plan["served_model_name"] == MODEL_NAME
    assert plan["limits"]["max_model_len"] == 512
    assert {"memory", "kernels"} <= plan.keys()


def test_nothing_wrong_reached_the_engine(http: httpx.Client, server: ServerProcess) -> None:
    """A refused request holds no block, and the server still answers."""
    http.post(COMPLETIONS, json={"prompt": "hi", "temperature": 9})
    assert server.metric("num_requests_running") == 0
    assert server.metric("kv_blocks", state="used") == 0
    assert json.loads(http.post(COMPLETIONS, json={"prompt": "hi"}).content)["choices"]
