"""Block sizes and compile options per op, shape class and arch: data beside each vendor's kernels.

Nothing is searched at run time: a table is read once, so that no compile is a surprise.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from hal.device import Capabilities

TABLES = {"nvidia": "hal.kernels.cuda", "amd": "hal.kernels.rocm"}
"""Vendor -> the package whose tuning.toml speaks of its devices."""

UNTUNED = "untuned"
_ANY_ARCH = "default"
# What a row says about itself; all else goes to the launch.
_FACTS = ("threads", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """One row. threads: of a program; they become warps of the device's own width.

    options: block sizes and compile options, by the names that the launch takes
    source: the measurement behind it, a file of benchmarks/results/, or "untuned"
    """

    threads: int
    options: Mapping[str, int]
    source: str

    def launch_options(self, simd_width: int) -> dict[str, int]:
        """Of a launch, on a device whose warps or wavefronts have simd_width threads."""
        return {**self.options, "num_warps": max(1, self.threads // simd_width)}


def launch_options(caps: Capabilities, op: str, shape_class: str = "any") -> dict[str, int]:
    """The options of the row for this device."""
    return find_tuning(caps, op, shape_class).launch_options(caps.simd_width)


def find_tuning(caps: Capabilities, op: str, shape_class: str = "any") -> Tuning:
    """The row of caps.arch, of its longest prefix that has one, or of any arch of its vendor."""
    rows = table_of(caps.vendor)[op][shape_class]
    fitting = [arch for arch in rows if caps.arch.startswith(arch)]
    return rows[max(fitting, key=len, default=_ANY_ARCH)]


@cache
def table_of(vendor: str) -> Mapping[str, Mapping[str, Mapping[str, Tuning]]]:
    """op -> shape class -> arch -> row."""
    text = files(TABLES[vendor]).joinpath("tuning.toml").read_text(encoding="utf-8")
    return {
        op: {
            shape_class: {arch: _row(row) for arch, row in archs.items()}
            for shape_class, archs in classes.items()
        }
        for op, classes in tomllib.loads(text).items()
    }


def _row(row: Mapping[str, Any]) -> Tuning:
    options = {name: int(value) for name, value in row.items() if name not in _FACTS}
    return Tuning(threads=int(row["threads"]), options=options, source=str(row["source"]))
