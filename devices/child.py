"""Asks a driver from a sub-process: one that crashes or hangs becomes a reason, not our end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from hal.exit_status import exit_words, last_words
from hal.report import DeviceReport

# Importing torch and waking several cards takes seconds, on a busy machine many; hanging is longer.
TIMEOUT_S = 30.0
# A process stuck in the kernel survives SIGKILL: it is left behind after this.
_REAP_S = 1.0
_ANSWER = "hal-devices:"


@dataclass(frozen=True, slots=True)
class Answer:
    """The devices a child listed, or why it did not."""

    devices: tuple[DeviceReport, ...] = ()
    failure: str = ""


def module_command(module: str) -> tuple[str, ...]:
    """Run `module` with this interpreter; -P keeps a `torch.py` in the user's folder out."""
    return (sys.executable, "-P", "-m", module)


def print_answer(devices: Sequence[DeviceReport]) -> None:
    """The child's side of `ask`. The mark tells the answer from whatever drivers print."""
    sys.stdout.write(f"\n{_ANSWER}{json.dumps([d.as_json() for d in devices])}\n")


def ask(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> Answer:
    """Run `command` and read its devices; never raises for what the child does."""
    try:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        return Answer(failure=f"the probe did not start: {error}")
    try:
        stdout, stderr = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(child)
        return Answer(failure=f"no answer from the driver within {timeout_s:g} s: it hangs")
    if child.returncode != 0:
        return Answer(failure=_death(child.returncode, stderr))
    return _parse(stdout)


def _kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    try:
        child.communicate(timeout=_REAP_S)
    except subprocess.TimeoutExpired:
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()


def _death(returncode: int, stderr: str) -> str:
    said = last_words(stderr)
    last = f": {said}" if said else ""
    what = "the driver crashed the probe" if returncode < 0 else "the probe failed"
    return f"{what} with {exit_words(returncode)}{last}"


def _parse(stdout: str) -> Answer:
    answers = [line for line in stdout.splitlines() if line.startswith(_ANSWER)]
    if not answers:
        return Answer(failure="the probe ended without an answer")
    try:
        listed = json.loads(answers[-1].removeprefix(_ANSWER))
        return Answer(devices=tuple(DeviceReport.from_json(d) for d in listed))
    except ValueError as error:
        return Answer(failure=f"the probe's answer is damaged: {error}")
