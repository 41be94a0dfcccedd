"""What every benchmark writes beside its numbers, and how it summarises repeated runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    lowest: float
    highest: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(
        round(statistics.median(values), 4),
        round(min(values), 4),
        round(max(values), 4),
        len(values),
    )


def commit() -> str:
    """The commit that was measured; `-dirty` says that it is not quite that."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def header(benchmark: str) -> dict[str, object]:
    """Name, date, commit, machine and load of this run."""
    return {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "load_1min_at_start": os.getloadavg()[0],
    }


def write(path: Path, report: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
