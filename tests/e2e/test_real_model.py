"""hal-serve with real weights: the embedded model, the official client, the real engine process."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from fake_serving import ServerProcess, is_alive, open_request, serving, wait_for

import hal.tiny

MODEL = "hal-tiny"
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
LONG_PROMPT = "Once upon a time there was a small robot. " * 8


@pytest.fixture(scope="module")
def server(device_name: str) -> Iterator[ServerProcess]:
    with serving([MODEL, "--device", device_name, "--threads", "1", "--offline"]) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_banner_tells_everything(server: ServerProcess) -> None:
    banner = "\n".join(server.out_lines)
    for piece in (MODEL, "LlamaForCausalLM", "KV cache", "weights", "1024 tokens", "curl -N"):
        assert piece in banner
    assert any(line.startswith("device ") for line in server.out_lines)


def test_the_plan_explains_device_memory_and_kernels(server: ServerProcess) -> None:
    plan = server.get("/hal/plan").json()
    assert plan["served_model_name"] == MODEL
    assert plan["device"]["reason"]
    assert plan["memory"]["weights_bytes"] > 0
    assert {choice["name"] for choice in plan["choices"]} >= {"dtype", "max_model_len"}
    attention = [kernel for kernel in plan["kernels"] if "attention" in kernel["op"]]
    assert attention
    assert all(kernel["kernel"] and kernel["reason"] for kernel in attention)
    rejected = [r for kernel in plan["kernels"] for r in kernel["rejected"]]
    assert all(r["rule"] and r["reason"] for r in rejected)
    levels = plan["levels"]
    assert sum(levels.values()) == len(plan["kernels"])
    scraped = server.get("/metrics").text
    for level, count in levels.items():
        assert f'hal:kernel_sites{{level="{level}",model_name="{MODEL}"}} {count}.0' in scraped


def test_streamed_and_whole_answers_are_the_same(client: openai.OpenAI) -> None:
    arguments = {"model": MODEL, "temperature": 0, "max_tokens": 24}
    whole = client.chat.completions.create(messages=QUESTION, **arguments)  # type: ignore[call-overload]
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        messages=QUESTION, stream=True, stream_options={"include_usage": True}, **arguments
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert text.strip()
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.prompt_tokens > 0


def test_a_seed_fixes_the_answer_and_its_choices_differ(client: openai.OpenAI) -> None:
    def ask(seed: int) -> list[str]:
        done = client.completions.create(
            model=MODEL, prompt="The", temperature=1.5, max_tokens=20, n=3, seed=seed
        )
        return [choice.text for choice in done.choices]

    first = ask(1)
    assert ask(1) == first
    assert ask(2) != first
    assert len(set(first)) > 1


def test_prefix_hits_are_counted(client: openai.OpenAI) -> None:
    def ask() -> tuple[str, int]:
        done = client.completions.create(
            model=MODEL, prompt=LONG_PROMPT, temperature=0, max_tokens=8
        )
        assert done.usage is not None
        details = done.usage.prompt_tokens_details
        assert details is not None
        return done.choices[0].text, details.cached_tokens or 0

    text, _ = ask()
    again, num_cached = ask()
    assert again == text
    assert num_cached >= 32


def test_logprobs_bias_and_stop(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello!"}],
        temperature=0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=3,
    )
    assert done.choices[0].logprobs is not None
    content = done.choices[0].logprobs.content
    assert content
    for entry in content:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3
        assert tops == sorted(tops, reverse=True)
        assert entry.logprob == tops[0] <= 0  # greedy: the chosen one is the most likely
    (banned,) = httpx.post(
        f"{client.base_url}".removesuffix("/v1/") + "/tokenize",
        json={"prompt": content[0].token, "add_special_tokens": False},
    ).json()["tokens"]
    biased = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello!"}],
        temperature=0,
        max_tokens=1,
        logprobs=True,
        logit_bias={str(banned): -100},
    )
    assert biased.choices[0].logprobs is not None
    assert biased.choices[0].logprobs.content is not None
    assert biased.choices[0].logprobs.content[0].token != content[0].token
    text = done.choices[0].message.content
    assert text
    stop = text[3:5]
    stopped = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello!"}],
        temperature=0,
        max_tokens=12,
        stop=[stop],
    )
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_what_does_not_fit_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="a", max_tokens=5000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")
    assert "1024" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(server: ServerProcess, stream: bool) -> None:
    body = {"prompt": LONG_PROMPT, "max_tokens": 700, "ignore_eos": True, "stream": stream, "n": 4}
    before = num_aborted(server)
    with open_request(server, "/v1/completions", body):
        wait_for(lambda: server.metric("kv_blocks", state="used") > 0, server)
    wait_for(lambda: num_aborted(server) == before + 1, server)
    wait_for(lambda: server.metric("num_requests_running") == 0, server)
    wait_for(lambda: server.metric("kv_blocks", state="used") == 0, server)


def num_aborted(server: ServerProcess) -> float:
    return server.metric("requests_aborted_total", cause="client_disconnect")


def completions(server: ServerProcess) -> str:
    return f"{server.url}/v1/completions"


def test_ctrl_c_during_a_stream(device_name: str) -> None:
    with serving(
        [MODEL, "--device", device_name, "--threads", "1", "--shutdown-timeout", "0"]
    ) as server:
        server.wait_ready()
        engine = server.engine_pid()
        body = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "stream": True, "n": 8}
        lines: list[str] = []
        with (
            httpx.Client(verify=False, timeout=60) as client,
            client.stream("POST", completions(server), json=body) as answer,
        ):
            for line in answer.iter_lines():
                if line and not lines:
                    server.signal(signal.SIGINT)
                lines.append(line)
        last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert server.wait() == 0
        assert not is_alive(engine)
        assert "Traceback" not in "\n".join(server.error_lines)


def test_ctrl_c_while_torch_loads(device_name: str) -> None:
    with serving([MODEL, "--device", device_name]) as server:
        engine = server.engine_pid()
        assert server.url
        wait_for(lambda: server.get("/live").status_code == 200, server)
        server.signal(signal.SIGINT)
        assert server.wait() in (0, 130)  # 0 if it was ready already
        assert not is_alive(engine)
        assert "Traceback" not in "\n".join(server.error_lines)


@pytest.mark.parametrize("damage", ["missing folder", "no config", "truncated", "corrupt config"])
def test_a_damaged_model(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage != "missing folder":
        shutil.copytree(hal.tiny.path(), folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage == "truncated":
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)
    elif damage == "corrupt config":
        config.write_text("{")
    with serving([folder, "--device", "cpu"]) as server:
        assert server.wait() == 3
        check_cause(server, str(folder))
        assert server.out_lines == []


@pytest.mark.parametrize(
    ("arguments", "code", "piece"),
    [
        (["--device", "toaster"], 2, "toaster"),
        (["--device", "cpu", "--max-model-len", "4096"], 2, "1024"),
        (["--device", "cpu", "--memory", "1MiB"], 4, "MiB"),
        (["--device", "cpu", "--kernel", "linear=nonsense"], 2, "nonsense"),
    ],
)
def test_settings_that_cannot_work(arguments: list[str], code: int, piece: str) -> None:
    with serving([MODEL, *arguments]) as server:
        assert server.wait() == code
        check_cause(server, piece)


def check_cause(server: ServerProcess, piece: str) -> None:
    """The last line is the cause; it has the value and no traceback stands above it."""
    assert server.error_lines[-1].startswith("hal-serve: HAL-E")
    assert piece in server.error_lines[-1]
    assert "Traceback" not in "\n".join(server.error_lines)
