"""What is compiled: one problem of one op, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Takes the bound kernel, calls it once; nothing runs, so tensors hold nothing.
Call = Callable[[Any], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One problem of one op. multiplies: by matrix instructions, of `any` number of rows or `large`
    where an arch has others for many; `int8_any`, `int8_large`: of codes. reads_wide: 16 bytes at a
    time."""

    op: str
    name: str
    problem: Any
    call: Call
    multiplies: str = ""
    reads_wide: bool = True

    def __str__(self) -> str:
        return f"{self.op} {self.name}"
