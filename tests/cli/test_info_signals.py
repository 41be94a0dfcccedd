"""hal-info that is told to end leaves no child and no folder behind: real processes and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

PROVE = ("prove", "hal-tiny", "--devices", "null,null:h100", "--max-tokens", "400")
DOCTOR = ("doctor", "--device", "null")
DEADLINE_S = 60.0

T = TypeVar("T")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


def wait_for(what: Callable[[], T | None]) -> T:
    until = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)
    return found


def child_of(pid: int, module: str) -> int | None:
    """The child that runs `module`; others probe drivers and end by themselves."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        lines = {int(c): Path(f"/proc/{c}/cmdline").read_bytes() for c in children}
    except OSError:
        return None
    return next((child for child, line in lines.items() if module.encode() in line), None)


def is_gone(pid: int) -> bool:
    """Nobody may reap the orphan of a process that was killed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "hal.cli.info", *words]
        environ = {**os.environ, "TMPDIR": str(tmp_path)}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=pipe)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "module"), [(PROVE, "prove_run"), (DOCTOR, "selftest")], ids=["prove", "doctor"]
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_child_outlives_the_command(
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    words: tuple[str, ...],
    module: str,
    number: signal.Signals,
) -> None:
    process = start(*words)
    child = wait_for(lambda: child_of(process.pid, module))
    process.send_signal(number)
    _, said = process.communicate(timeout=DEADLINE_S)
    wait_for(lambda: is_gone(child) or None)
    if number == signal.SIGKILL:  # nobody can put folders away after that
        assert process.returncode == -number
        return
    assert process.returncode == 128 + number
    assert said.decode().splitlines()[-1] == f"hal-info {words[0]}: ended by {number.name}"
    assert list(tmp_path.iterdir()) == []


def test_an_ignored_signal_stays_ignored(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(*DOCTOR)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(lambda: child_of(process.pid, "selftest"))
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
