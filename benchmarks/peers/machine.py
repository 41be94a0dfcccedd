"""The ceilings to divide by, and whether anybody else uses the machine."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_name("machine.cpp")
READ_MIB = 512  # far beyond any last-level cache share of a small machine
QUIET = 1.0  # load average above which a run may mislead
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best of twenty runs; None where the CPU lacks it or it could not be measured."""

    read_gb_s: float | None = None
    vnni_tops: float | None = None
    bf16_tflops: float | None = None
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"ceilings not measured: {self.problem}"
        return (
            f"reads {_or_absent(self.read_gb_s, 'GB/s')}, "
            f"VNNI {_or_absent(self.vnni_tops, 'Top/s')}, "
            f"BF16 {_or_absent(self.bf16_tflops, 'TFLOP/s')}"
        )


def _or_absent(value: float | None, unit: str) -> str:
    return "absent" if value is None else f"{value:.3g} {unit}"


def parse_ceilings(text: str) -> Ceilings:
    return Ceilings(**json.loads(text))


class Machine:
    """machine.cpp, compiled once for the length of a `with`."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._binary = str(Path(self._folder.name) / "machine")
        self._problem = _problem_of(
            ["g++", "-std=c++20", "-O3", "-pthread", str(SOURCE), "-o", self._binary]
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def ceilings(self) -> Ceilings:
        return self._measure()

    def read_gb_s(self) -> float | None:
        """Now: on a shared host it changes from minute to minute."""
        return self._measure("read").read_gb_s

    def _measure(self, *only: str) -> Ceilings:
        if self._problem:
            return Ceilings(problem=self._problem)
        command = [self._binary, str(self._threads), str(READ_MIB), *only]
        try:
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return Ceilings(problem=f"machine.cpp: exit status {error.returncode}")
        return parse_ceilings(done.stdout)


def _problem_of(build: Sequence[str]) -> str:
    """Why this command failed, or nothing."""
    try:
        subprocess.run(build, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        return f"no {build[0]} here"
    except subprocess.CalledProcessError as error:
        lines: list[str] = error.stderr.strip().splitlines()
        return lines[0] if lines else f"exit status {error.returncode}"
    return ""


def load_problem(load: float, limit: float) -> str | None:
    """Why a run now would mislead, or None."""
    if load <= limit:
        return None
    return (
        f"the load average is {load:.2f}, above --load-limit {limit:g}: "
        "wait for a quiet machine, or pass --force and get numbers marked as loaded"
    )


def busy_seconds(stat: str | None = None) -> float:
    """CPU time that all processes have used since boot, interrupts and stolen time included."""
    text = Path("/proc/stat").read_text() if stat is None else stat
    user, nice, system, _idle, _wait, irq, soft_irq, stolen = map(int, text.split()[1:9])
    return (user + nice + system + irq + soft_irq + stolen) / _TICKS
