"""hal-serve and hal-run on a device that poses and fails: exit codes, last lines, no orphans."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from fake_serving import ROOT, TIMEOUT_S, ServerProcess, is_alive, serving

LIMITS = ("--max-model-len", "128", "--max-num-seqs", "4")


@contextmanager
def tiny_server(device: str, *arguments: str) -> Iterator[ServerProcess]:
    """hal-serve with the embedded model."""
    with serving(["hal-tiny", "--device", device, *LIMITS, *arguments]) as server:
        yield server.wait_ready()


def ask(server: ServerProcess, **fields: object) -> httpx.Response:
    body = {"prompt": "12 + 30 =", "max_tokens": 4, "temperature": 0, "ignore_eos": True, **fields}
    with httpx.Client(verify=False, timeout=TIMEOUT_S) as client:
        return client.post(f"{server.url}/v1/completions", json=body)


def last_line(server: ServerProcess) -> str:
    assert "Traceback" not in "\n".join(server.error_lines)
    return server.error_lines[-1]


def test_a_posing_server_says_what_it_is_and_answers() -> None:
    with tiny_server("null:mi300x") as server:
        banner = "\n".join(server.out_lines)
        assert re.search(r"^model    hal-tiny \(.*, bfloat16\)$", banner, re.MULTILINE)
        assert "null device (reference kernels) (null): poses as AMD Instinct MI300X" in banner
        assert "reference kernels run in host memory" in banner
        assert "  on AMD Instinct MI300X\n" in banner
        assert ask(server).status_code == 200
        plan = server.get("/hal/plan").json()
        assert plan["posed"]["device"]["arch"] == "gfx942"
        assert plan["device"]["vendor"] == "null"
        assert {row["op"] for row in plan["posed"]["kernels"]} == {
            row["op"] for row in plan["kernels"]
        }


def test_nan_is_a_500_for_that_request_and_the_next_is_fine() -> None:
    with tiny_server("null:h100,nan@2") as server:
        broken = ask(server)
        error = broken.json()["error"]
        assert (broken.status_code, error["code"]) == (500, "numerical_error")
        assert error["message"].startswith("HAL-E610: ")
        fine = ask(server)
        assert fine.status_code == 200
        assert fine.json()["usage"]["completion_tokens"] == 4
        assert server.get("/ready").status_code == 200


def test_oom_reaches_the_client_and_the_log_with_its_sizes() -> None:
    with tiny_server("null:oom@2") as server:
        lost = ask(server)
        error = lost.json()["error"]
        assert (lost.status_code, error["code"]) == (500, "step_failed")
        sizes = r"HAL-E310: step 2 failed: DeviceOutOfMemory: .* B wanted, 0 B free, .* held here"
        assert re.match(sizes, error["message"])
        assert server.line(sizes, server.error_lines).startswith("hal-engine: ")
        assert ask(server).status_code == 200
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in "\n".join(server.error_lines)


def test_oom_in_three_steps_in_a_row_ends_the_server() -> None:
    with tiny_server("null:oom@1,oom@2,oom@3") as server:
        engine = server.engine_pid()
        statuses = [ask(server).status_code for _ in range(3)]
        assert statuses == [500, 500, 503]
        assert server.wait() == 6
        assert last_line(server).startswith("hal-serve: HAL-E310: step 3 failed: ")
        assert not is_alive(engine)


def test_oom_while_loading() -> None:
    with serving(["hal-tiny", "--device", "null:h100,oom@0", *LIMITS]) as server:
        assert server.wait() == 4
        assert re.match(r"hal-serve: HAL-E310: .* \(injected by oom@0\): ", last_line(server))


def test_a_hang_is_found_by_the_watchdog() -> None:
    with tiny_server("null:h100,hang@2", "--step-timeout", "1") as server:
        engine = server.engine_pid()
        lost = ask(server)
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "engine_unavailable")
        assert server.wait() == 6
        assert re.match(
            rf"hal-serve: HAL-E603: step 2 of the engine \(pid {engine}\) .* more than 1 s",
            last_line(server),
        )
        assert not is_alive(engine)


def test_a_crash_ends_the_server_with_its_cause() -> None:
    with tiny_server("null:h100,crash@2") as server:
        engine = server.engine_pid()
        lost = ask(server)
        assert (lost.status_code, lost.json()["error"]["code"]) == (503, "engine_unavailable")
        assert server.wait() == 6
        assert re.match(
            rf"hal-serve: HAL-E601: the engine process \(pid {engine}\) was killed by SIGABRT",
            last_line(server),
        )
        assert "null device: aborting, injected by crash@2" in server.error_lines
        assert not is_alive(engine)


def hal_run(device: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "hal.cli.run", "--device", device, *arguments]
    return subprocess.Popen(
        [*command, "--prompt", "hi", "--max-tokens", "5", *LIMITS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "exit_code", "last"),
    [
        (["null:h10"], 2, "HAL-E100: unknown device profile 'h10'; did you mean h100"),
        (["null:h100,oom@x"], 2, "HAL-E100: --device null:h100,oom@x: oom@x: 'x' is no step"),
        (["2xnull:h100"], 2, "HAL-E110: not supported yet: tensor parallel over 2 devices"),
        (["null:h100,oom@0"], 4, "HAL-E310: "),
        (["null:h100", "--strict", "--kernel", "linear=reference"], 5, "HAL-E500: no kernel of "),
        (["null:h100,oom@3"], 6, "HAL-E310: step 3 failed: "),
        (["null:h100,nan@3"], 6, "HAL-E610: request 0: the logits of output token 2 "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_hal_run_ends_with_the_cause(arguments: list[str], exit_code: int, last: str) -> None:
    process = hal_run(*arguments)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == exit_code
    assert "Traceback" not in stderr
    assert stderr.rstrip().splitlines()[-1].startswith(f"hal-run: {last}")


def test_a_crash_takes_hal_run_down_as_a_driver_would() -> None:
    process = hal_run("null:h100,crash@2")
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == -signal.SIGABRT
    assert stderr.splitlines()[-1] == "null device: aborting, injected by crash@2"


def test_ctrl_c_ends_a_hanging_hal_run() -> None:
    process = hal_run("null:h100,hang@3")
    assert process.stdout is not None
    assert process.stdout.read(1) != "", "it streams until step 3"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "hal-run: interrupted"
