"""`hal-info conform`: every kernel, layer and model check on one device, as a table and a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hal.cli.arguments import ENGINE_FLAGS, CommandLine, Flag, FlagGroup
from hal.cli.info.report_file import ReportFile
from hal.errors import ConfigError

PROG = "hal-info conform"
EXIT_NOT_SHOWN = 1

_DESCRIPTION = (
    "Runs every kernel on every case of its op, then the layers and the whole of tiny models of "
    "each architecture, and compares with an oracle in float64. Works on any device, those of "
    "other packages included. Exit code 0: all that ran passed and nothing required is missing; "
    "1: a check failed or is missing; 2: a wrong flag, or a device that cannot be used."
)
_FLAGS = FlagGroup(
    "what to run",
    (
        *(flag for flag in ENGINE_FLAGS.flags if flag.name == "device"),
        Flag(name="quick", help="fewer ways to cut the models' text", convert=None),
        Flag(name="op", help="only this op; may be repeated", metavar="OP", repeats=True),
        Flag(
            name="kernel",
            help="only this kernel, as NAME or OP=NAME; may be repeated",
            metavar="NAME",
            repeats=True,
        ),
        Flag(
            name="seeds",
            help="draws of weights and text for each model",
            metavar="N",
            convert=int,
            default=1,
        ),
        Flag(name="report", help="write everything to FILE as JSON", metavar="FILE", convert=Path),
    ),
)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the checks; 1 when one failed or is missing."""
    line = CommandLine(PROG, _DESCRIPTION, [_FLAGS], takes_model=False)
    values = line.parse(argv, environ)
    path = values.get("report")
    if not isinstance(path, Path):
        return _run(values, None)
    with ReportFile(path) as file:
        return _run(values, file)


def _run(values: Mapping[str, object], file: ReportFile | None) -> int:
    # After parsing, because these import torch.
    from hal.cli.info.conform_report import collect
    from hal.cli.info.conform_text import render, worst_failure
    from hal.conform.run import ConformRequest, check_names

    request = ConformRequest(
        ops=_strings(values.get("op")),
        kernels=_strings(values.get("kernel")),
        is_quick=bool(values.get("quick", False)),
        num_seeds=_seeds(values),
    )
    check_names(request)
    report = collect(str(values.get("device", "auto")), request, say)
    say("")
    print(render(report))
    if file is not None:
        file.write(report.as_json())
        print(f"Report: {file.path}")
    if report.results.has_passed:
        return 0
    print(f"{PROG}: {worst_failure(report)}", file=sys.stderr, flush=True)
    return EXIT_NOT_SHOWN


def say(what: str) -> None:
    """What runs now, in one line that the next overwrites; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def _seeds(values: Mapping[str, object]) -> int:
    count = values.get("seeds", 1)
    if not isinstance(count, int) or count < 1:
        raise ConfigError(f"--seeds must be a whole number of at least 1; got {count}")
    return count


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()
