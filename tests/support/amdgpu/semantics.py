"""Rows of the instruction tables: a mnemonic's types, its function, and where it is documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# Types of vector operands: bits are taken as they say. `lanes` is a mask in a pair of scalar
# registers; `vcc` the same, implied; `dst` the destination as it was, implied.
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Shift:
    """ufunc(b, a & limit): shifts take the low bits of their first source as the distance."""

    ufunc: Any
    limit: int

    def __call__(self, a: Any, b: Any) -> Any:
        return self.ufunc(b, (a & self.limit).astype(b.dtype, copy=False))


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. results, sources: types in the order of the operands as written.

    function: of arrays [64] of the sources' types; gives one array for each result
    section: of the "CDNA3 ISA" reference guide, unless it names another
    """

    name: str
    results: tuple[str, ...]
    sources: tuple[str, ...]
    function: Function
    section: str


Row = tuple[str, str, Function]


def table(section: str, *rows: Row) -> Iterator[tuple[str, Operation]]:
    """Rows as ("v_add_f32", "f32 <- f32 f32", function)."""
    for name, types, function in rows:
        results, _, sources = types.partition("<-")
        yield (
            name,
            Operation(name, tuple(results.split()), tuple(sources.split()), function, section),
        )
