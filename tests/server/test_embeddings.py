"""POST /v1/embeddings with the official client: a script pools, and hal-tiny for the real thing."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import httpx
import openai
import pytest
from fake_serving import MODEL_NAME, TIMEOUT_S, ServerProcess, ids, serving

from hal import LLM
from hal.server.embeddings import NUM_AT_ONCE
from hal.server.fake_engine import HIDDEN_SIZE


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def unit(token_ids: list[int], dimensions: int = HIDDEN_SIZE) -> list[float]:
    """The script's embedding, of length 1."""
    vector = [len(token_ids), sum(token_ids), token_ids[0], token_ids[-1]][:dimensions]
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("abc", [ids("abc")]),
        (["abc", "Köln"], [ids("abc"), ids("Köln")]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
    ids=["text", "texts", "token ids", "lists of token ids"],
)
def test_every_form_of_input(client: openai.OpenAI, given: Any, prompts: list[list[int]]) -> None:
    """The client asks for base64 by itself and decodes it."""
    done = client.embeddings.create(model=MODEL_NAME, input=given)
    assert [item.index for item in done.data] == list(range(len(prompts)))
    for item, prompt in zip(done.data, prompts, strict=True):
        assert item.embedding == pytest.approx(unit(prompt), rel=1e-6)
    num_tokens = sum(map(len, prompts))
    assert (done.usage.prompt_tokens, done.usage.total_tokens) == (num_tokens, num_tokens)
    assert (done.object, done.model) == ("list", MODEL_NAME)


def test_both_encodings_say_the_same(http: httpx.Client) -> None:
    def embedding(**extra: object) -> Any:
        answer = http.post("/v1/embeddings", json={"input": "abc", **extra})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["embedding"]

    plain = embedding()
    packed = base64.b64decode(embedding(encoding_format="base64"))
    assert list(struct.unpack(f"<{HIDDEN_SIZE}f", packed)) == pytest.approx(plain, rel=1e-6)
    assert plain == embedding(encoding_format="float") == embedding(pooling="last", user="u")
    assert embedding(dimensions=2) == pytest.approx(unit(ids("abc"), 2), rel=1e-6)


def test_more_inputs_than_run_at_once(client: openai.OpenAI) -> None:
    texts = [f"text {i}" for i in range(2 * NUM_AT_ONCE + 3)]
    done = client.embeddings.create(model=MODEL_NAME, input=texts)
    for item, text in zip(done.data, texts, strict=True):
        assert item.embedding == pytest.approx(unit(ids(text)), rel=1e-6)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": ""}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": ["a", 3]}, "input", "invalid_value"),
        ({"input": {"text": "a"}}, "input", "invalid_value"),
        ({"input": [9999]}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": "a" * 600}, "input", "context_length_exceeded"),
        ({"input": "refuse"}, "input", "context_length_exceeded"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": 5}, "dimensions", "invalid_value"),
        ({"input": "a", "dimensions": "2"}, "dimensions", "invalid_value"),
        ({"input": "a", "pooling": "cls"}, "pooling", "invalid_value"),
        ({"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens", None),
        ({"input": "a", "model": "other"}, None, "model_not_found"),
    ],
)
def test_wrong_bodies_name_the_field(
    http: httpx.Client, body: dict[str, Any], param: str | None, code: str | None
) -> None:
    answer = http.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert error["code"] == (code or "unsupported_parameter")
    assert param is None or error["param"] == param


def test_a_failed_input_fails_the_request_alone(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", json={"input": ["fine", "a"], "model": MODEL_NAME})
    assert answer.status_code == 200
    ended = http.post("/v1/embeddings", json={"input": ["fine", "fall"]})
    assert (ended.status_code, ended.json()["error"]["code"]) == (500, "numerical_error")
    assert http.post("/v1/embeddings", json={"input": "fine"}).status_code == 200


def test_hal_tiny_answers_as_the_python_api() -> None:
    arguments = ["hal-tiny", "--device", "cpu", "--port", "0", "--dtype", "float32"]
    texts = ["Once upon a time", "There was a dog."]
    with serving(arguments) as process:
        url = f"{process.wait_ready().url}/v1/embeddings"
        found = {
            pooling: httpx.post(url, json={"input": texts, "pooling": pooling}, timeout=TIMEOUT_S)
            for pooling in ("last", "mean")
        }
    with LLM("hal-tiny", device="cpu", dtype="float32") as llm:
        for pooling, answer in found.items():
            ours = [each.outputs.embedding for each in llm.embed(texts, pooling=pooling)]
            theirs = [item["embedding"] for item in answer.json()["data"]]
            for a, b in zip(ours, theirs, strict=True):
                assert a == pytest.approx(b, abs=1e-6)
