"""`hal-info verify`: run-time kernels compiled for archs that need not be here, and checked; with
--execute also run, by an emulator."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from hal.cli.arguments import CommandLine, Flag, FlagGroup
from hal.cli.info.columns import section
from hal.cli.info.conform import say
from hal.errors import ConfigError

if TYPE_CHECKING:  # imports torch
    from hal.conform.emulated import EmulatedRecord, EmulationRequest
    from hal.kernels.triton.verify.matrix import Compiled

PROG = "hal-info verify"
EXIT_NOT_SHOWN = 1
SCHEMA_VERSION = 1

_DESCRIPTION = (
    "Compiles every Triton kernel for each target, none of which need be in this machine, and "
    "reads the machine code: matrix instructions, loads of 16 bytes, nothing spilled, shared "
    "memory within the arch's limit, occupancy not below the recorded floor. Nothing is run, "
    "but with --execute an emulator runs the code for gfx942 and gfx950 on conformance cases; it "
    "is a test tool, so this needs a checkout of the repository. Exit code 0: all is as it should "
    "be; 1: a fault was found; 2: a wrong flag, no Triton, or no checkout."
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
        Flag(
            name="execute",
            help="also run the code under the emulator, against the float64 oracle",
            convert=None,
        ),
        Flag(
            name="all-cases",
            help="with --execute: every conformance case (about an hour), not a chosen part",
            convert=None,
        ),
        Flag(name="json", help="everything as one JSON object", convert=None),
    ),
)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Compile and report; 1 when the code of a kernel is not as it should be."""
    values = CommandLine(PROG, _DESCRIPTION, [_FLAGS], takes_model=False).parse(argv, environ)
    # After parsing, because these import torch.
    from hal.conform.compile_matrix import MatrixRequest, compile_matrix

    emulation = _emulation(values)
    request = MatrixRequest(archs=_targets(values), ops=_ops(values))
    cells = list(compile_matrix(request))
    records = _emulated(emulation)
    if values.get("json"):
        print(json.dumps(_as_json(cells, records, emulation)))
    else:
        print(render(cells, request.archs))
        print(render_emulated(records), end="")
    faults = [str(cell) for cell in cells if cell.faults]
    faults += [f"{r.record} on {r.arch}" for r in records if not _is_fine(r)]
    if faults:
        num_checked = len(cells) + len(records)
        more = f"{len(faults)} of {num_checked} are not as they should be"
        print(f"{PROG}: {more}; first: {faults[0]}", file=sys.stderr)
    return EXIT_NOT_SHOWN if faults else 0


def _targets(values: Mapping[str, object]) -> tuple[str, ...]:
    from hal.conform.emulated import EMULATED_ARCHS
    from hal.kernels.triton.verify.targets import DEFAULT_ARCHS

    targets = values.get("targets")
    if targets is None:
        return EMULATED_ARCHS if values.get("execute") else DEFAULT_ARCHS
    return _archs(str(targets))


def _ops(values: Mapping[str, object]) -> tuple[str, ...]:
    ops = values.get("op")
    return tuple(map(str, ops)) if isinstance(ops, list) else ()


def _emulation(values: Mapping[str, object]) -> EmulationRequest | None:
    """What --execute asks for; what cannot be is refused before anything is compiled."""
    from hal.conform.emulated import EmulationRequest, emulated_cases, emulator_folder

    is_full = bool(values.get("all_cases"))
    if not values.get("execute"):
        if is_full:
            raise ConfigError("--all-cases says what --execute runs; give both")
        return None
    request = EmulationRequest(archs=_targets(values), ops=_ops(values), is_full=is_full)
    emulator_folder()
    emulated_cases(request)
    return request


def _emulated(request: EmulationRequest | None) -> list[EmulatedRecord]:
    """Run it all, which may take long."""
    from hal.conform.emulated import emulate

    records: list[EmulatedRecord] = []
    for found in () if request is None else emulate(request):
        say(f"{found.record.op} {found.record.case} on {found.arch}: {found.record.verdict}")
        records.append(found)
    say("")
    return records


def _is_fine(found: EmulatedRecord) -> bool:
    return found.record.has_passed or bool(found.record.skipped)


def _as_json(
    cells: Sequence[Compiled],
    records: Sequence[EmulatedRecord],
    emulation: EmulationRequest | None,
) -> dict[str, object]:
    from hal.cli.info.conform_report import outcome_as_json
    from hal.conform.emulated import COMPILED_WITH

    said: dict[str, object] = {"schema": SCHEMA_VERSION, "cells": [asdict(cell) for cell in cells]}
    if emulation is not None:
        said["compiled_with"] = COMPILED_WITH
        said["emulated"] = [
            {"arch": found.arch, "op": found.record.op, **outcome_as_json(found.record)}
            for found in records
        ]
    return said


def render_emulated(records: Sequence[EmulatedRecord]) -> str:
    """A row for each op on each arch; "" where nothing was executed."""
    if not records:
        return ""
    from hal.cli.info.conform_text import HEADING, summary_rows
    from hal.conform.emulated import COMPILED_WITH, summaries

    title = HEADING % "Executed by the emulator"
    note = f"Emulated, not run on a card; compiled with {COMPILED_WITH}. What it shows: docs/amd.md"
    return "\n".join(["", section(title, summary_rows(summaries(records))), "", note, ""])


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
            "Numbers: warps or wavefronts that a SIMD holds at once. -: the kernel rejects it.",
            *(f"fault: {cell}" for cell in found if cell.faults),
            *dict.fromkeys(f"rejected: {cell}" for cell in found if cell.rejected),
        ]
    )


def _mark(cell: Compiled) -> str:
    return "-" if cell.rejected else "FAULT" if cell.faults else str(cell.waves)
