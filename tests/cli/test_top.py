"""hal-serve top beside a real server: on a terminal, in a pipe, without a server."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_serving import (
    MODEL_NAME,
    ROOT,
    ServerProcess,
    fake_arguments,
    serving,
    write_byte_model,
    write_script,
)

from hal.cli.serve import main
from hal.cli.top.scrape import NoAnswer, Scrape, Window, parse
from hal.cli.top.view import BAR_WIDTH, screen

BUCKETS = """
# TYPE hal:x_seconds histogram
hal:x_seconds_bucket{le="0.1"} %d
hal:x_seconds_bucket{le="0.2"} %d
hal:x_seconds_bucket{le="+Inf"} %d
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("top")
    script = write_script(folder / "script.json")
    with serving(fake_arguments(write_byte_model(folder / "model"), script)) as process:
        yield process.wait_ready()


def test_a_pipe_gets_one_plain_screen(
    target: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", target.url, "--interval", "0.1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{MODEL_NAME}  {target.url}")
    assert "\x1b" not in out
    for piece in ("tokens/s", "TTFT", "running", "KV blocks          256", "prefix hits"):
        assert piece in out


def test_a_terminal_is_redrawn_until_ctrl_c(target: ServerProcess) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-P", "-m", "hal.cli.serve", "top", target.url, "--interval", "0.1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=child, stdout=child, stderr=subprocess.PIPE, text=True
    ) as top:
        os.close(child)
        shown = ""
        while shown.count("running") < 3:
            shown += os.read(parent, 65536).decode()
        httpx.post(f"{target.url}/v1/completions", json={"prompt": "ab", "max_tokens": 8})
        top.send_signal(signal.SIGINT)
        shown += _rest(parent)
        assert top.stderr is not None and top.stderr.read() == ""
    assert top.returncode == 0
    assert shown.startswith("\x1b[?1049h\x1b[?25l") and shown.endswith("\x1b[?25h\x1b[?1049l")


def _rest(terminal: int) -> str:
    """Until the program has ended: Linux says EIO then."""
    text = b""
    try:
        while data := os.read(terminal, 65536):
            text += data
    except OSError as error:
        assert error.errno == errno.EIO
    os.close(terminal)
    return text.decode()


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["http://127.0.0.1:9"], "no answer from http://127.0.0.1:9"),
        (["http://127.0.0.1:9", "--interval", "0"], "--interval must be from 0.1"),
        (["--count", "0"], "--count must be at least 1"),
        (["ftp://x"], "is not a URL"),
    ],
)
def test_what_cannot_be_watched(
    arguments: list[str], piece: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hal-serve: HAL-E100: ") and piece in last


def test_a_server_that_wants_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = write_script(tmp_path / "script.json")
    arguments = fake_arguments(write_byte_model(tmp_path / "model"), script)
    with serving([*arguments, "--api-key", "secret"]) as server:
        server.wait_ready()
        assert main(["top", server.url]) == 2
        assert "answers 401; set HAL_API_KEY or --api-key" in capsys.readouterr().err
        assert main(["top", server.url, "--api-key", "secret", "--interval", "0.1"]) == 0


def test_quantiles_of_what_came_between() -> None:
    before, now = parse(BUCKETS % (10, 10, 10), 0.0), parse(BUCKETS % (20, 30, 30), 2.0)
    found = Window(before, now).quantiles("x_seconds", (0.25, 0.5, 0.75))
    assert found == pytest.approx([0.05, 0.1, 0.15])
    above = parse(BUCKETS % (20, 30, 50), 2.0)
    assert Window(now, above).quantiles("x_seconds", (0.5,)) == [0.2]
    assert Window(now, now).quantiles("x_seconds", (0.5,)) is None


def test_rates_survive_a_restart() -> None:
    high = parse("hal:c_total 100", 0.0)
    low = parse("hal:c_total 3", 2.0)
    assert Window(high, low).rate("c_total") == 0.0
    assert Window(Scrape(0.0), high).rate("c_total") == 0.0
    assert Window(parse("hal:c_total 90", -2.0), high).rate("c_total") == 5.0


def test_a_server_of_vllm_has_the_same_names() -> None:
    text = 'vllm:num_requests_running{model_name="m"} 3\nvllm:kv_cache_usage_perc 0.25\n'
    lines = screen(Window(parse(text, 0.0), parse(text, 1.0)), {}, "http://x")
    assert any(re.fullmatch(r"running +3", line) for line in lines)
    (kv,) = [line for line in lines if line.startswith("KV")]
    assert "25.0% used" in kv and "#" * (BAR_WIDTH // 4) + "." in kv
    for wrong in ("<html>", "other_metric 1"):
        with pytest.raises(NoAnswer):
            parse(wrong, 0.0)


def test_a_server_without_an_engine() -> None:
    text = 'hal:http_requests_total{handler="/ready"} 3\n'
    lines = screen(Window(parse(text, 0.0), parse(text, 1.0)), {}, "http://x")
    assert lines[1] == "the engine is not up: http://x/ready says in which state it is"


def test_states_of_blocks_fill_the_bar() -> None:
    states = {"used": 1, "cached": 50, "pinned": 0, "free": 949}
    text = "".join(f'hal:kv_blocks{{state="{name}"}} {n}\n' for name, n in states.items())
    (line,) = [x for x in screen(Window(parse(text, 0), parse(text, 1)), {}, "u") if "[" in x]
    bar = line.partition("[")[2].partition("]")[0]
    assert bar == "#++" + "." * (BAR_WIDTH - 3)
