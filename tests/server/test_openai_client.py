"""The official client against every route it knows, streaming and not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from fake_serving import EOS, MODEL_NAME, ServerProcess, ids


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.owned_by) == (MODEL_NAME, "hal")
    assert client.models.retrieve(MODEL_NAME).id == MODEL_NAME
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"
    assert MODEL_NAME in str(caught.value)


@pytest.mark.parametrize("prompt", ["h€llo 🙂", ids("h€llo 🙂")])
def test_completion_of_text_or_token_ids(client: openai.OpenAI, prompt: str | list[int]) -> None:
    done = client.completions.create(model=MODEL_NAME, prompt=prompt, max_tokens=50)
    (choice,) = done.choices
    assert (choice.text, choice.finish_reason, choice.index) == ("h€llo 🙂", "stop", 0)
    assert done.object == "text_completion"
    assert done.model == MODEL_NAME
    assert done.usage is not None
    num_bytes = len("h€llo 🙂".encode())
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (num_bytes, num_bytes + 1)
    assert done.usage.total_tokens == 2 * num_bytes + 1


@pytest.mark.parametrize("prompt", [["ab", "cd"], [ids("ab"), ids("cd")]])
def test_several_prompts(client: openai.OpenAI, prompt: list[str] | list[list[int]]) -> None:
    done = client.completions.create(model=MODEL_NAME, prompt=prompt, n=2)
    assert [(c.index, c.text) for c in done.choices] == [(0, "ab"), (1, "ab"), (2, "cd"), (3, "cd")]
    assert done.usage is not None
    assert done.usage.prompt_tokens == 4  # each prompt once, whatever n is


def test_completion_stops_at_sixteen_tokens_by_default(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL_NAME, prompt="x" * 40)
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("x" * 16, "length")


def test_streamed_completion_never_splits_a_character(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL_NAME, prompt="h€llo 🙂", max_tokens=50, stream=True
    )
    chunks = list(stream)
    texts = [chunk.choices[0].text for chunk in chunks]
    assert texts == ["h", "€", "l", "l", "o", " ", "🙂", ""]
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons == [None] * 7 + ["stop"]


def test_chat(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL_NAME, messages=[{"role": "user", "content": "hi"}], max_tokens=20
    )
    (choice,) = done.choices
    assert done.object == "chat.completion"
    # The template's control token is in the echoed ids but not in the text.
    assert (choice.message.role, choice.message.content) == ("assistant", "hi")
    assert choice.finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.prompt_tokens == 3


def test_content_parts_and_developer_role(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[
            {"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None},
        ],
    )
    assert done.choices[0].message.content == "ab"


def test_streamed_chat_starts_with_the_role(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "hi"
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 4)
    assert [c.choices[0].finish_reason for c in chunks[:-1]].count("stop") == 1


def test_choices_of_a_stream_are_told_apart(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL_NAME, messages=[{"role": "user", "content": "TWO!"}], n=2, stream=True
    )
    texts, ends = {0: "", 1: ""}, {0: 0, 1: 0}
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] += choice.finish_reason is not None
    assert texts == {0: "first", 1: "second"}
    assert ends == {0: 1, 1: 1}


@pytest.mark.parametrize("is_streamed", [False, True])
def test_stop_string_across_tokens(client: openai.OpenAI, is_streamed: bool) -> None:
    prompt = "one ST two STOP three"
    if is_streamed:
        chunks = list(
            client.completions.create(
                model=MODEL_NAME, prompt=prompt, stop=["STOP"], max_tokens=50, stream=True
            )
        )
        text = "".join(c.choices[0].text for c in chunks)
        last = chunks[-1].choices[0]
    else:
        done = client.completions.create(
            model=MODEL_NAME, prompt=prompt, stop="STOP", max_tokens=50
        )
        text, last = done.choices[0].text, done.choices[0]
        assert done.usage is not None
        assert done.usage.completion_tokens == len("one ST two STOP")
    assert text == "one ST two "
    assert last.finish_reason == "stop"
    assert last.model_extra == {"stop_reason": "STOP"}


def test_stop_string_can_be_included(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model=MODEL_NAME,
        prompt="one STOP two",
        stop="STOP",
        extra_body={"include_stop_str_in_output": True},
    )
    assert done.choices[0].text == "one STOP"


def test_one_choice_stops_by_string_while_another_goes_on(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL_NAME, prompt="TWO!", n=2, stop="ir")
    assert [c.text for c in done.choices] == ["f", "second"]


def test_extensions_reach_the_engine(client: openai.OpenAI) -> None:
    (b,) = ids("b")
    done = client.completions.create(
        model=MODEL_NAME, prompt="abab", extra_body={"stop_token_ids": [b], "min_tokens": 3}
    )
    assert (done.choices[0].text, done.choices[0].model_extra) == ("aba", {"stop_reason": b})
    endless = client.completions.create(
        model=MODEL_NAME, prompt=[*ids("ab"), EOS], max_tokens=5, extra_body={"ignore_eos": True}
    )
    assert (endless.choices[0].text, endless.choices[0].finish_reason) == ("abab", "length")


def test_chat_logprobs(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": "é"}],
        logprobs=True,
        top_logprobs=2,
    )
    assert done.choices[0].logprobs is not None
    content = done.choices[0].logprobs.content
    assert content is not None
    assert done.usage is not None
    assert len(content) == done.usage.completion_tokens
    assert [entry.bytes for entry in content[1:3]] == [[0xC3], [0xA9]]
    assert content[1].logprob == -0.5
    assert [top.logprob for top in content[1].top_logprobs] == [-0.5, -1.5]


def test_completion_logprobs(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL_NAME, prompt="aéb", logprobs=2, max_tokens=4)
    logprobs = done.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "\ufffd", "\ufffd", "b"]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.text_offset == [0, 1, 1, 2]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.5, "b": -1.5}


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL_NAME, prompt="aéb", logprobs=1)
    stream = client.completions.create(model=MODEL_NAME, prompt="aéb", logprobs=1, stream=True)
    tokens: list[str] = []
    offsets: list[int] = []
    for chunk in stream:
        if chunk.choices[0].logprobs is not None:
            tokens += chunk.choices[0].logprobs.tokens or []
            offsets += chunk.choices[0].logprobs.text_offset or []
    assert whole.choices[0].logprobs is not None
    assert tokens == whole.choices[0].logprobs.tokens
    assert offsets == whole.choices[0].logprobs.text_offset


def test_cached_tokens_are_reported(client: openai.OpenAI) -> None:
    done = client.completions.create(model=MODEL_NAME, prompt="cached", n=2)
    assert done.usage is not None
    assert done.usage.prompt_tokens_details is not None
    assert done.usage.prompt_tokens_details.cached_tokens == 4


def test_a_broken_row_is_an_error_for_it_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model=MODEL_NAME, prompt="nan")
    assert caught.value.code == "numerical_error"
    stream = client.completions.create(model=MODEL_NAME, prompt="nan", stream=True)
    texts: list[str] = []
    with pytest.raises(openai.APIError) as in_stream:
        texts.extend(chunk.choices[0].text for chunk in stream)
    assert in_stream.value.code == "numerical_error"
    assert client.completions.create(model=MODEL_NAME, prompt="fine").choices[0].text == "fine"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_engines_refusal_is_a_real_status(client: openai.OpenAI, is_streamed: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL_NAME, prompt="refuse", stream=is_streamed)
    assert caught.value.code == "context_length_exceeded"
    assert "no room" in str(caught.value)


def test_async_client_with_neighbours(server: ServerProcess) -> None:
    async def ask() -> list[str]:
        base_url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:
            jobs = [
                client.completions.create(model=MODEL_NAME, prompt=f"neighbour {i}")
                for i in range(20)
            ]
            return [done.choices[0].text for done in await asyncio.gather(*jobs)]

    assert asyncio.run(ask()) == [f"neighbour {i}" for i in range(20)]


def test_raw_headers(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL_NAME,
        prompt="a",
        user="me",
        extra_body={"mystery": 1, "guess\r\nx: y": 2},
        extra_headers={"x-request-id": "my-id.1"},
    )
    assert raw.headers["x-request-id"] == "my-id.1"
    assert raw.headers["x-hal-ignored"] == "guess??x: y, mystery"
    assert raw.parse().id == "cmpl-my-id.1"


def test_two_requests_of_one_name_at_once(client: openai.OpenAI) -> None:
    """A proxy retries with the id of the first try, which may still run."""

    def start() -> openai.Stream[openai.types.Completion]:
        return client.completions.create(
            model=MODEL_NAME,
            prompt="slow",
            max_tokens=30,
            stream=True,
            extra_headers={"x-request-id": "again"},
        )

    with start() as first, start() as second:
        texts = ["".join(chunk.choices[0].text for chunk in stream) for stream in (second, first)]
    assert texts == ["x" * 30] * 2
