"""hal-serve as a user meets it: start, stop, failures; exit codes, last lines, no orphans."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fake_serving import (
    MODEL_NAME,
    ROOT,
    ServerProcess,
    fake_arguments,
    ids,
    is_alive,
    rule,
    serving,
    wait_for,
    write_byte_model,
    write_script,
)

SLOW_RULE = rule("slow", tokens=ids("x" * 400), step_delay_s=0.01)
SLOW = {"prompt": "slow", "max_tokens": 100, "stream": True}


@contextmanager
def fake_server(
    folder: Path, *arguments: str, rules: list[dict[str, object]] | None = None, **settings: object
) -> Iterator[ServerProcess]:
    model = write_byte_model(folder / "model")
    script = write_script(folder / "script.json", rules or [SLOW_RULE], **settings)
    with serving([*fake_arguments(model, script), *arguments]) as server:
        yield server


class Stream:
    """A streaming request in a thread of its own; keeps every line."""

    def __init__(self, server: ServerProcess, body: dict[str, object]) -> None:
        self.lines: list[str] = []
        self._url = f"{server.url}/v1/completions"
        self._body = body
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        wait_for(lambda: self.lines, server)

    def join(self) -> list[str]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.lines

    def last_error(self) -> dict[str, object]:
        error = json.loads(self.join()[-1].removeprefix("data: "))["error"]
        assert isinstance(error, dict)
        return error

    def _read(self) -> None:
        with (
            httpx.Client(verify=False, timeout=30) as client,
            client.stream("POST", self._url, json=self._body) as answer,
        ):
            self.lines.extend(line for line in answer.iter_lines() if line)


def run_serve(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """hal-serve with arguments that end it by themselves."""
    command = [sys.executable, "-P", "-m", "hal.cli.serve", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_last_line(stderr: str, *pieces: str) -> None:
    assert "Traceback" not in stderr
    last = stderr.rstrip().splitlines()[-1]
    assert last.startswith("hal-serve: HAL-E")
    for piece in pieces:
        assert piece in last


def test_the_banner_can_be_pasted(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        server.wait_ready()
        banner = "\n".join(server.out_lines)
        for piece in (MODEL_NAME, "a scripted engine for tests", "memory", "512 tokens", "/v1"):
            assert piece in banner
        words = shlex.split(server.out_lines[-1].split("Try:", 1)[1])
        assert words[:2] == ["curl", "-N"]
        url, body = words[2], words[words.index("-d") + 1]
        name, value = words[words.index("-H") + 1].split(": ")
        answer = httpx.post(url, content=body, headers={name: value})
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as owner:
        port = owner.getsockname()[1]
        done = run_serve(str(tmp_path / "no model"), "--port", str(port))
    assert done.returncode == 2
    check_last_line(done.stderr, "HAL-E100", f"port {port}", "--port ", "free")


@pytest.mark.parametrize(
    ("arguments", "pieces"),
    [
        (["--max-modl-len", "5"], ["--max-modl-len", "did you mean --max-model-len?"]),
        (["--max-num-seqs", "0"], ["max_num_seqs", "0"]),
        (["--port", "99999"], ["99999"]),
        (["--port", "x"], ["--port", "x"]),
        (["--host", "0.0.0.0"], ["0.0.0.0", "HAL_API_KEY"]),
        (["--trust-remote-code"], ["trust_remote_code", "never run"]),
        (["--pipeline-parallel-size", "2"], ["pipeline_parallel_size=2", "not supported yet"]),
        (["--kv-cache-dtype", "fp4"], ["kv_cache_dtype", "not supported yet"]),
        (["--engine", "real"], ["--engine"]),
    ],
)
def test_wrong_flags(arguments: list[str], pieces: list[str]) -> None:
    done = run_serve(*arguments)
    assert done.returncode == 2
    check_last_line(done.stderr, *pieces)


def test_wrong_environment() -> None:
    done = run_serve(HAL_MAX_NUM_SEQS="many")
    assert done.returncode == 2
    check_last_line(done.stderr, "HAL_MAX_NUM_SEQS", "many")


def test_a_start_that_fails_in_the_engine_process(tmp_path: Path) -> None:
    record = {"kind": "MemoryPlanError", "code": "HAL-E300", "message": "needs 9 GiB of 8"}
    with fake_server(tmp_path, start_error=record) as server:
        assert server.wait() == 4
        assert server.out_lines == []
        check_last_line("\n".join(server.error_lines), "HAL-E300: needs 9 GiB of 8")


def test_a_tokenizer_that_fails(tmp_path: Path) -> None:
    model = write_byte_model(tmp_path / "model")
    (model / "tokenizer.json").write_text("{}")
    script = write_script(tmp_path / "script.json", start_delay_s=60)
    with serving(fake_arguments(model, script)) as server:
        assert server.wait() == 3
        check_last_line("\n".join(server.error_lines), "HAL-E220", "tokenizer.json")


def test_while_loading(tmp_path: Path) -> None:
    with fake_server(tmp_path, start_delay_s=60) as server:
        engine = server.engine_pid()
        with httpx.Client(base_url=server.url, verify=False) as client:
            assert client.get("/live").status_code == 200
            assert client.get("/ready").status_code == 503
            assert client.get("/health").json() == {"status": "starting"}
            answer = client.post("/v1/completions", json={"prompt": "a"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
            assert int(answer.headers["retry-after"]) > 0
            assert client.get("/v1/models").status_code == 200
            assert client.get("/metrics").status_code == 200
        server.signal(signal.SIGINT)
        assert server.wait() == 130
        assert not is_alive(engine)
        assert "Traceback" not in "\n".join(server.error_lines)


def test_sigterm_while_loading(tmp_path: Path) -> None:
    with fake_server(tmp_path, start_delay_s=60) as server:
        engine = server.engine_pid()
        assert httpx.get(f"{server.url}/live").status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not is_alive(engine)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_drain_lets_streams_finish(tmp_path: Path, number: signal.Signals) -> None:
    with fake_server(tmp_path) as server:
        server.wait_ready()
        engine = server.engine_pid()
        stream = Stream(server, SLOW)
        server.signal(number)
        server.line("1 running request", server.error_lines)
        assert server.get("/ready").json() == {"status": "draining"}
        assert server.get("/health").status_code == 200
        late = httpx.post(f"{server.url}/v1/completions", json={"prompt": "late"})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert late.headers["retry-after"]
        assert stream.join()[-1] == "data: [DONE]"
        assert server.wait() == 0
        assert not is_alive(engine)
        assert "Traceback" not in "\n".join(server.error_lines)


def test_a_second_ctrl_c_stops_now(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        server.wait_ready()
        engine = server.engine_pid()
        stream = Stream(server, {**SLOW, "max_tokens": 400, "ignore_eos": True})
        server.signal(signal.SIGINT)
        server.line("1 running request", server.error_lines)
        server.signal(signal.SIGINT)
        assert server.wait() == 130
        assert stream.last_error()["code"] == "draining"
        assert not is_alive(engine)
        assert "Traceback" not in "\n".join(server.error_lines)


def test_the_shutdown_timeout_ends_streams_with_an_error(tmp_path: Path) -> None:
    with fake_server(tmp_path, "--shutdown-timeout", "0") as server:
        server.wait_ready()
        stream = Stream(server, {**SLOW, "max_tokens": 400, "ignore_eos": True})
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert stream.last_error()["code"] == "draining"


def test_a_killed_engine(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        server.wait_ready()
        stream = Stream(server, {**SLOW, "max_tokens": 400, "ignore_eos": True})
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert server.wait() == 6
        assert stream.last_error()["code"] == "engine_unavailable"
        check_last_line("\n".join(server.error_lines), "HAL-E601", "SIGKILL")


def test_an_engine_that_crashes(tmp_path: Path) -> None:
    with fake_server(tmp_path, rules=[rule("crash", crash_at=2)]) as server:
        server.wait_ready()
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "crash"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "engine_unavailable")
        assert server.wait() == 6
        check_last_line("\n".join(server.error_lines), "HAL-E601", "code 11")


def test_a_killed_front_leaves_no_engine(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        server.wait_ready()
        engine = server.engine_pid()
        server.signal(signal.SIGKILL)
        server.wait()
        wait_for(lambda: not is_alive(engine))


def test_a_stopped_and_continued_server_is_no_false_alarm(tmp_path: Path) -> None:
    with fake_server(tmp_path, "--heartbeat-timeout", "1") as server:
        server.wait_ready()
        server.signal(signal.SIGSTOP)
        time.sleep(2.5)  # longer than the heartbeat timeout and the watchdog's interval
        server.signal(signal.SIGCONT)
        for _ in range(3):
            assert server.get("/ready").status_code == 200
            time.sleep(0.5)
        assert is_alive(server.engine_pid())


def test_help_is_light() -> None:
    code = (
        "import sys; from hal.cli.serve import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'pydantic', 'uvicorn', 'msgspec', 'tokenizers'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for piece in ("--max-model-len", "HAL_MAX_MODEL_LEN", "--gpu-memory-utilization", "--api-key"):
        assert piece in done.stdout
    assert "fake" not in done.stdout
