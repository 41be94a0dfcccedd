"""A new server takes the place of a running one: real processes, clients that must not notice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fake_serving import (
    ServerProcess,
    fake_arguments,
    ids,
    rule,
    serving,
    write_byte_model,
    write_script,
)

from hal.cli.serve import main

RULES = [rule("slow", tokens=ids("x" * 60), step_delay_s=0.02)]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    model = write_byte_model(tmp_path / "model")
    return fake_arguments(model, write_script(tmp_path / "script.json", RULES))


def port_of(server: ServerProcess) -> str:
    return str(httpx.URL(server.url).port)


@contextmanager
def successor(arguments: list[str], old: ServerProcess) -> Iterator[ServerProcess]:
    with serving([*arguments, "--port", port_of(old), "--take-over"]) as server:
        yield server


class Clients:
    """Ask one after another over connections that stay open, until told to stop."""

    def __init__(self, url: str, num_clients: int) -> None:
        self._url = f"{url}/v1/completions"
        self._is_done = threading.Event()
        self.problems: list[str] = []
        self.num_answers = 0
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._is_done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._is_done.is_set():
                try:
                    answer = client.post(self._url, json={"prompt": "abc", "max_tokens": 3})
                    if (answer.status_code, answer.json()["choices"][0]["text"]) != (200, "abc"):
                        self.problems.append(answer.text)
                except Exception as error:  # noqa: BLE001 each is what a client must not see
                    self.problems.append(repr(error))
                self.num_answers += 1


def test_clients_do_not_notice(arguments: list[str]) -> None:
    with serving(arguments) as old:
        url = old.wait_ready().url
        with Clients(url, 4) as clients, successor(arguments, old) as new:
            body = {"prompt": "slow", "max_tokens": 60, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as stream:
                lines = stream.iter_lines()
                first = next(lines)
                new.wait_ready()
                rest = [line for line in lines if line]
            assert old.wait() == 0
            before = clients.num_answers
            assert first.startswith("data: ")
            assert rest[-1] == "data: [DONE]"
            assert sum('"text":"x"' in line for line in (first, *rest)) == 60
            while clients.num_answers < before + 50:
                assert new.process.poll() is None
            clients.stop()
        assert clients.problems == []
        assert any("another server has taken over" in line for line in old.error_lines)
        assert any(f"took over from pid {old.process.pid}" in line for line in new.error_lines)
        assert f"{url}/ready is answered by pid {old.process.pid} until then" in new.error_lines[0]


def test_twice_in_a_row_and_what_prompts_share_is_read_first(arguments: list[str]) -> None:
    prompt = "0123456789abcdef" * 3
    with serving(arguments) as first, successor_of(first, arguments, prompt) as second:
        assert first.wait() == 0
        assert any("1 prefixes are in the cache" in line for line in second.error_lines)
        assert second.metric("prompt_tokens_total") == len(prompt)
        with successor(arguments, second) as third:
            third.wait_ready()
            assert second.wait() == 0
            assert httpx.get(f"{third.url}/ready").status_code == 200


@contextmanager
def successor_of(old: ServerProcess, arguments: list[str], prompt: str) -> Iterator[ServerProcess]:
    url = f"{old.wait_ready().url}/v1/completions"
    for end in ("!", "?"):
        assert httpx.post(url, json={"prompt": prompt + end, "max_tokens": 1}).status_code == 200
    with successor(arguments, old) as new:
        yield new.wait_ready()


def test_one_that_cannot_load_changes_nothing(arguments: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with serving(arguments) as old:
        old.wait_ready()
        with successor([*arguments, "--engine", f"fake:{broken}"], old) as new:
            assert new.wait() != 0
        assert httpx.get(f"{old.url}/ready").status_code == 200
        with successor(arguments, old) as new:
            new.wait_ready()
            assert old.wait() == 0


def test_another_tokenizer_gets_no_prefixes(arguments: list[str], tmp_path: Path) -> None:
    other = write_byte_model(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<user>", "<who>"))
    with serving(arguments) as old:
        with successor_of(old, [str(other), *arguments[1:]], "0123456789abcdef" * 3) as new:
            assert any("0 prefixes are in the cache" in line for line in new.error_lines)


def test_nobody_to_take_over_from(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:  # listens, but is no hal-serve
        port = str(other.getsockname()[1])
        assert main(["--port", port, "--take-over"]) == 2
    assert f"no hal-serve listens on 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["--port", "0", "--take-over"]) == 2
    assert "name the port" in capsys.readouterr().err


def test_the_use_of_keys_goes_with_the_socket(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.toml"
    main(["keys", "add", str(keys), "team", "--tokens-per-day", "20"])
    headers = {"authorization": f"Bearer {capsys.readouterr().out.strip()}"}
    body = {"prompt": "0123456789", "max_tokens": 8}
    arguments += ["--api-keys", str(keys)]
    with serving(arguments) as old:
        url = f"{old.wait_ready().url}/v1/completions"
        assert httpx.post(url, json=body, headers=headers).status_code == 200
        with successor(arguments, old) as new:
            new.wait_ready()
            answer = httpx.post(url, json=body, headers=headers)
            assert answer.json()["error"]["code"] == "insufficient_quota"
