"""`hal-info plan MODEL --device 2xmi300x`: does it fit, and what would make it fit."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hal.cli.arguments import ENGINE_FLAGS, CommandLine, Flag, FlagGroup, report_error
from hal.cli.info.command import PROG
from hal.env import wants_traceback
from hal.errors import ConfigError, HalError, UnsupportedError
from hal.weights import FORMAT_NAMES

if TYPE_CHECKING:
    from hal.planning.settings import PlanSettings

_PROG = f"{PROG} plan"
EXIT_DOES_NOT_FIT = 2
_DESCRIPTION = (
    "Whether a model fits a device, present or not: what takes the bytes, how many sequences and "
    "how long a context fit, and upper bounds of the token rates. Reads config.json and, where "
    "weights are there, tensor headers; never weights. Exit code 2: it does not fit (with what "
    "would make it fit), or something asked for cannot be."
)


class _BadValue(argparse.ArgumentTypeError, ValueError):
    """A value that a flag does not take: argparse and the environment both name the flag."""


def _count(text: str) -> int:
    from hal.planning.settings import parse_count

    try:
        return parse_count(text)
    except ConfigError as error:
        raise _BadValue(error.message) from error


def _number(name: str, help: str, *, is_hidden: bool = False) -> Flag:
    return Flag(name=name, help=help, metavar="N", convert=_count, is_hidden=is_hidden)


_SHARED = ("dtype", "memory", "kernel", "strict", "deterministic")
_FLAGS = FlagGroup(
    "what to plan",
    (
        Flag(
            name="device",
            help="a profile (h200, 2xmi300x, rtx4090), or cpu, cuda, rocm in this machine",
            metavar="NAME",
            default="auto",
        ),
        Flag(name="compare", help="one row for each of these devices", metavar="NAME,NAME"),
        _number("ctx", "longest prompt + answer in tokens, e.g. 8k; default the model's limit"),
        _number("concurrency", "sequences of that length that must fit at once; default 1"),
        _number("typical", "tokens of a usual sequence; default a quarter of ctx"),
        Flag(name="kv", help="KV cache: auto, int8 or fp8", metavar="TYPE", default="auto"),
        Flag(
            name="quantization",
            help=f"weights: one of {FORMAT_NAMES}",
            metavar="TYPE",
            default="none",
        ),
        _number("tp", "devices that share the model; default all that --device names"),
        *(flag for flag in ENGINE_FLAGS.flags if flag.name in _SHARED),
        _number("max-num-seqs", "slots; default --concurrency, else as hal-serve"),
        _number("max-num-batched-tokens", "most tokens of one step; default as hal-serve"),
        _number("block-size", "tokens per KV block; default as hal-serve"),
        Flag(name="json", help="print one JSON object instead of text", convert=None),
        _number("max-model-len", "", is_hidden=True),
        _number("tensor-parallel-size", "", is_hidden=True),
        Flag(name="kv-cache-dtype", is_hidden=True),
        Flag(name="gpu-memory-utilization", is_hidden=True),
    ),
)
_OTHER_NAMES = {
    "max_model_len": "ctx",
    "tensor_parallel_size": "tp",
    "kv_cache_dtype": "kv",
    "gpu_memory_utilization": "memory",
}


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print the plan; 0 when it fits, 2 for everything else."""
    try:
        return _run(_parse(argv, environ))
    except HalError as error:
        if wants_traceback():
            raise
        report_error(_PROG, error)
        return EXIT_DOES_NOT_FIT


def _run(values: dict[str, object]) -> int:
    # After parsing, because these import numpy and, for what the engine can run, torch.
    from hal.planning.settings import PlanSettings

    as_json, compared = bool(values.pop("json", False)), values.pop("compare", None)
    values.setdefault("model", "hal-tiny")
    if compared is not None:
        if "device" in values:
            raise ConfigError("--device and --compare both name devices; give one of them")
        return _compare(PlanSettings(**values), str(compared).split(","), as_json)  # type: ignore[arg-type]  # converted by the flag table
    return _plan(PlanSettings(**values), as_json)  # type: ignore[arg-type]


def _plan(settings: PlanSettings, as_json: bool) -> int:
    from hal.cli.info.plan_text import render
    from hal.planning.plan import plan_for

    report = plan_for(settings)
    print(json.dumps(report.as_json(), indent=2) if as_json else render(report))
    if report.error is None:
        return 0
    report_error(_PROG, report.error)
    return EXIT_DOES_NOT_FIT


def _compare(settings: PlanSettings, devices: Sequence[str], as_json: bool) -> int:
    from hal.cli.info.plan_text import render_comparison
    from hal.planning.compare import compare

    comparison = compare(settings, [name.strip() for name in devices])
    if as_json:
        print(json.dumps(comparison.as_json(), indent=2))
    else:
        print(render_comparison(comparison))
    if comparison.any_fits:
        return 0
    row = comparison.rows[0]
    error = row.error if row.report is None else row.report.error
    assert error is not None, "a row that does not fit says why"
    count = len(comparison.rows)
    devices = f"none of {count} devices fits; the first, " if count > 1 else ""
    print(f"{_PROG}: {devices}{row.device}: {error}", file=sys.stderr)
    return EXIT_DOES_NOT_FIT


def _parse(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, object]:
    """This command's own settings; those of others are fine in the environment, not as flags."""
    line = CommandLine(_PROG, _DESCRIPTION, [_FLAGS])
    own = {flag.dest for flag in _FLAGS.flags} | {"model"}
    typed = line.parse(argv, {})
    foreign = sorted(typed.keys() - own)
    if foreign:
        raise UnsupportedError(
            f"not supported yet: {_PROG} with --{foreign[0].replace('_', '-')}, which no plan "
            f"depends on; leave it out. {_PROG} --help lists what it takes"
        )
    # What is typed goes before the environment, also where two flags exclude each other.
    excluded = {"compare": "HAL_DEVICE", "device": "HAL_COMPARE"}
    unwanted = {excluded[name] for name in excluded if name in typed}
    environ = {name: value for name, value in environ.items() if name not in unwanted}
    parsed = line.parse(argv, environ)
    return _merged({name: value for name, value in parsed.items() if name in own})


def _merged(values: dict[str, object]) -> dict[str, object]:
    """hal-serve's and vLLM's names for the same settings; two that differ are refused."""
    merged = {name: value for name, value in values.items() if name not in _OTHER_NAMES}
    for name, becomes in _OTHER_NAMES.items():
        if name not in values:
            continue
        if becomes in merged and merged[becomes] != values[name]:
            raise ConfigError(
                f"--{becomes} {merged[becomes]} and --{name.replace('_', '-')} {values[name]} are "
                "the same setting; give one of them"
            )
        merged[becomes] = values[name]
    return merged
