"""The ceilings to divide by, and whether anybody else uses the machine."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("machine.cpp")
READ_MIB = 512  # far beyond any last-level cache share of a small machine
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Medians over ten runs; None where the CPU lacks it or it could not be measured."""

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


def measure_ceilings(threads: int) -> Ceilings:
    """Compile and run machine.cpp."""
    with tempfile.TemporaryDirectory() as folder:
        binary = str(Path(folder) / "machine")
        build = ["g++", "-std=c++20", "-O3", "-pthread", str(SOURCE), "-o", binary]
        try:
            subprocess.run(build, check=True, capture_output=True, text=True)
            run = [binary, str(threads), str(READ_MIB)]
            done = subprocess.run(run, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            return Ceilings(problem="no g++ here")
        except subprocess.CalledProcessError as error:
            lines = (error.stderr or "").strip().splitlines()
            return Ceilings(problem=lines[0] if lines else f"exit status {error.returncode}")
    return parse_ceilings(done.stdout)


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
