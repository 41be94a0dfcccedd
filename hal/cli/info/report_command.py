"""`hal-info`: every device found or not and why, and the kernel chosen for each op."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hal.aliases import nearest
from hal.cli.arguments import ENGINE_FLAGS, CommandLine, Flag, FlagGroup, report_error
from hal.cli.info.command import PROG, SUBCOMMANDS
from hal.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from hal.cli.info.report import InfoRequest

_DESCRIPTION = (
    "Every device of this machine with the reason when it cannot be used, the kernel chosen for "
    "each op with the reasons against the others, versions, and what is missing. "
    "Exit code 2: the device named by --device is not usable.\n\nSubcommands:\n"
    + "\n".join(f"  {PROG} {name:<9} {text}" for name, text in SUBCOMMANDS.items())
)
_SHARED = ("device", "dtype", "kernel", "strict", "deterministic", "threads", "cpu-affinity")
_FLAGS = FlagGroup(
    "what to show",
    (
        *(flag for flag in ENGINE_FLAGS.flags if flag.name in _SHARED),
        Flag(name="json", help="print one JSON object instead of text", convert=None),
    ),
)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the report; 2 when the device named by --device cannot be used."""
    values = _parse(argv, environ)
    # After parsing, because these import torch.
    from hal.cli.info.report import collect
    from hal.cli.info.text import render

    report = collect(_request(values))
    if values.get("json"):
        print(json.dumps(report.as_json(), indent=2))
    else:
        print(render(report))
    error = report.choice.error
    return 0 if error is None else report_error(PROG, error)


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, object]:
    """This command's own settings; those of others are fine in the environment, not as flags."""
    line = CommandLine(PROG, _DESCRIPTION, [_FLAGS])
    own = {flag.dest for flag in _FLAGS.flags}
    given = line.parse(argv, {})
    if "model" in given:
        raise ConfigError(_misplaced_model(str(given["model"])))
    foreign = sorted(given.keys() - own)
    if foreign:
        names = ", ".join(foreign)
        raise UnsupportedError(
            f"not supported yet: {PROG} with {names}; it shows devices and kernels without a "
            "model. GET /hal/plan of a running hal-serve shows them for its model"
        )
    return {name: value for name, value in line.parse(argv, environ).items() if name in own}


def _misplaced_model(word: str) -> str:
    guess = nearest(word, list(SUBCOMMANDS))
    if guess:
        return f"{word!r} is no subcommand; did you mean {PROG} {guess}?"
    return (
        f"{PROG} alone takes no model. Kernels for it: {PROG} explain {word}; "
        f"whether it fits a device: {PROG} plan {word}"
    )


def _request(values: Mapping[str, object]) -> InfoRequest:
    from hal.cli.info.report import InfoRequest

    kernel = values.get("kernel") or []
    threads = values.get("threads")
    assert isinstance(kernel, list) and isinstance(threads, int | None)
    return InfoRequest(
        device=str(values.get("device", "auto")),
        dtype=str(values.get("dtype", "auto")),
        kernel=tuple(str(override) for override in kernel),
        strict=bool(values.get("strict", False)),
        deterministic=bool(values.get("deterministic", False)),
        threads=threads,
        cpu_affinity=str(values.get("cpu_affinity", "auto")),
    )
