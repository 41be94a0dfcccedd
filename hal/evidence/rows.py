"""Evidence rows: their file, what each must prove, and the level that they give a kernel."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from functools import cache
from pathlib import Path

from hal.evidence.source import kernel_source
from hal.select import Kernel

SCHEMA_VERSION = 1
ROWS_FILE = Path(__file__).with_name("rows.json")


class Level(IntEnum):
    """What has been shown. REFERENCE: nothing beyond the specification's own tests."""

    REFERENCE = 0
    COMPILES = 1
    EMULATED = 2
    CONFORMS = 3
    BENCHMARKED = 4

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was shown.

    source_hash, compiler  of the kernel, as hal.evidence.source has them
    date                   ISO, when it was shown
    device, driver         where it ran (conforms, benchmarked)
    num_cases              conformance cases passed, none failed (conforms, benchmarked)
    proof                  versions it ran with; for compiles, emulated and benchmarked: the tool,
                           the emulator, or the file of the measurement
    """

    level: Level
    arch: str
    op: str
    kernel: str
    source_hash: str
    compiler: str
    date: str
    device: str = ""
    driver: str = ""
    num_cases: int = 0
    proof: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return (self.arch, self.op, self.kernel, self.source_hash, self.compiler)

    def missing_proof(self) -> tuple[str, ...]:
        """Fields that this level needs and that are empty; with any, the level is not reached."""
        needed = ["arch", "op", "kernel", "source_hash", "date"]
        if self.level in (Level.COMPILES, Level.EMULATED):
            needed += ["compiler", "proof"]
        if self.level >= Level.CONFORMS:
            needed += ["device", "driver", "num_cases", "proof"]
        return tuple(name for name in needed if not getattr(self, name))


def read_rows(path: Path = ROWS_FILE) -> tuple[Row, ...]:
    """Every row of the file; raises ValueError for anything else than rows."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema {data.get('schema')!r}; this hal reads {SCHEMA_VERSION}")
    try:
        return tuple(Row(**{**row, "level": Level[row["level"].upper()]}) for row in data["rows"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold evidence rows: {error!r}") from error


def write_rows(rows: Iterable[Row], path: Path = ROWS_FILE) -> None:
    """Sorted, one row a line, so that a difference can be read."""
    lines = [
        json.dumps({**asdict(row), "level": str(row.level)}) for row in sorted(rows, key=_order)
    ]
    body = ",\n  ".join(lines)
    text = f'{{\n "schema": {SCHEMA_VERSION},\n "rows": [\n  {body}\n ]\n}}\n'
    path.write_text(text if lines else text.replace("\n  \n", "\n"), encoding="utf-8")


@cache
def rows() -> tuple[Row, ...]:
    """The committed rows."""
    return read_rows()


@dataclass(frozen=True, slots=True)
class Evidence:
    """A kernel's level on an arch; proof: what compiled or ran it, and when."""

    level: Level = Level.REFERENCE
    proof: str = ""


def evidence_of(
    arch: str, op: str, kernel: Kernel, among: tuple[Row, ...] | None = None
) -> Evidence:
    """What the rows show for this kernel, as it is here, on `arch`.

    A kernel whose source or compiler differs from a row's gets nothing from it.
    """
    source = kernel_source(kernel)
    if source is None:
        return Evidence()
    key = (arch, op, kernel.name, source.hash, source.compiler)
    found = rows() if among is None else among
    shown = [row for row in found if row.key == key and not row.missing_proof()]
    best = max(shown, key=lambda row: (row.level, row.date), default=None)
    if best is None:
        return Evidence()
    return Evidence(best.level, f"{best.compiler or best.driver}, {best.date}")


def level_of(arch: str, op: str, kernel: Kernel, among: tuple[Row, ...] | None = None) -> Level:
    """The level of `evidence_of`."""
    return evidence_of(arch, op, kernel, among).level


def is_current(row: Row, kernel: Kernel) -> bool:
    """Whether the row speaks of this kernel as it is here; a stale one counts as reference."""
    source = kernel_source(kernel)
    return source is not None and (row.source_hash, row.compiler) == (source.hash, source.compiler)


def merge(old: Iterable[Row], new: Iterable[Row]) -> tuple[Row, ...]:
    """A new row replaces what was shown for the same arch, op, kernel and compiler at its level:
    the older source is gone from this checkout."""
    by_place = {_place(row): row for row in (*old, *new)}
    return tuple(sorted(by_place.values(), key=_order))


def _place(row: Row) -> tuple[object, ...]:
    return (row.arch, row.op, row.kernel, row.compiler, row.level)


def _order(row: Row) -> tuple[str, ...]:
    return tuple(str(getattr(row, f.name)) for f in fields(Row) if f.name != "level")
