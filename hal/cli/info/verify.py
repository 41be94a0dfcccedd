"""`hal-info verify`: run-time kernels compiled for archs that need not be here, and checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from hal.cli.arguments import CommandLine, Flag, FlagGroup
from hal.errors import ConfigError

if TYPE_CHECKING:  # imports torch
    from hal.kernels.triton.verify.matrix import Compiled

PROG = "hal-info verify"
EXIT_NOT_SHOWN = 1
SCHEMA_VERSION = 1

_DESCRIPTION = (
    "Compiles every kernel in Triton or C++ for each target, none of which need be in this "
    "machine, and reads the machine code: matrix instructions, loads of 16 bytes, nothing spilled, "
    "shared memory within the arch's limit, occupancy of Triton's not below the recorded floor. "
    "C++ is compiled by NVRTC and by clang for AMD; where one is missing, the table says so. "
    "Nothing is run. Exit code 0: all is as it should be; 1: a fault was found; 2: a wrong flag, "
    "or no Triton."
)
_FLAGS = FlagGroup(
    "what to compile",
    (
        Flag(
            name="targets",
            help="archs, separated by commas (gfx942,sm_90); all that are checked unless told",
            metavar="ARCHS",
        ),
        Flag(name="op", help="only this op; may be repeated", metavar="OP", repeats=True),
        Flag(name="json", help="everything as one JSON object", convert=None),
    ),
)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Compile and report; 1 when the code of a kernel is not as it should be."""
    values = CommandLine(PROG, _DESCRIPTION, [_FLAGS], takes_model=False).parse(argv, environ)
    # After parsing, because these import torch.
    from hal.conform.compile_matrix import MatrixRequest, compile_matrix, compile_sources
    from hal.kernels.triton.verify.targets import DEFAULT_ARCHS

    targets, ops = values.get("targets"), values.get("op")
    request = MatrixRequest(
        archs=DEFAULT_ARCHS if targets is None else _archs(str(targets)),
        ops=tuple(map(str, ops)) if isinstance(ops, list) else (),
    )
    cells = [*compile_matrix(request), *compile_sources(request)]
    if values.get("json"):
        print(json.dumps({"schema": SCHEMA_VERSION, "cells": [asdict(cell) for cell in cells]}))
    else:
        print(render(cells, request.archs))
    num_faulty = sum(1 for cell in cells if cell.faults)
    if num_faulty:
        print(f"{PROG}: {num_faulty} of {len(cells)} are not as they should be", file=sys.stderr)
    return EXIT_NOT_SHOWN if num_faulty else 0


def _archs(text: str) -> tuple[str, ...]:
    archs = tuple(part.strip() for part in text.split(","))
    if not all(archs):
        raise ConfigError(f"--targets {text!r} has an empty name; write it like gfx942,sm_90")
    return archs


def render(cells: Iterable[Compiled], archs: Sequence[str]) -> str:
    """A row for each site, a column for each arch, then what is at fault and what is rejected."""
    table: dict[str, dict[str, Compiled]] = {}
    for cell in cells:
        table.setdefault(cell.label, {})[cell.arch] = cell
    rows = [("site", *archs)]
    rows += [(label, *(_mark(row[arch]) for arch in archs)) for label, row in table.items()]
    found = [cell for row in table.values() for cell in row.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        [
            *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows),
            "",
            "Numbers: warps or wavefronts that a SIMD holds at once. -: the kernel rejects it. "
            "?: not compiled here.",
            *_compilers(found),
            *(f"fault: {cell}" for cell in found if cell.faults),
            *dict.fromkeys(f"rejected: {cell}" for cell in found if cell.rejected),
            *dict.fromkeys(f"not compiled: {c.arch}: {c.missing}" for c in found if c.missing),
        ]
    )


def _mark(cell: Compiled) -> str:
    if cell.rejected or cell.missing:
        return "-" if cell.rejected else "?"
    return "FAULT" if cell.faults else str(cell.waves)


def _compilers(cells: Iterable[Compiled]) -> list[str]:
    """Of kernels in C++, and the archs that each compiled for."""
    archs: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.compiler:
            archs.setdefault(f"{cell.kernel} by {cell.compiler}", {})[cell.arch] = None
    return [f"{what}: {', '.join(of)}" for what, of in archs.items()]
