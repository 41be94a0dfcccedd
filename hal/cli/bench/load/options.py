"""Flags of `hal-bench serve` and what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from hal.cli.arguments import CommandLine, Flag, FlagGroup
from hal.cli.bench.load.arrivals import Arrivals
from hal.cli.bench.load.figures import parse_goodput
from hal.cli.bench.load.http_client import Target, target_of
from hal.cli.bench.load.stream import Api
from hal.cli.bench.load.workload import Lengths, Workload
from hal.errors import ConfigError

MAX_REQUESTS = 100_000
"""Their bodies and records are kept in memory."""
MAX_CONCURRENCY = 10_000
CLOSED_CONCURRENCY, OPEN_CONCURRENCY = 8, 512
"""Requests at once where --concurrency does not say it: without and with times to send them at."""

Choice = TypeVar("Choice", bound=StrEnum)
Number = TypeVar("Number", int, float)

_FLAGS = FlagGroup(
    "load",
    (
        Flag(name="url", help="of the server; may stand alone", metavar="URL"),
        Flag(name="model", help="default: the first that /v1/models names", metavar="NAME"),
        Flag(name="api", help="completions or chat", metavar="API", default="completions"),
        Flag(name="api-key", help="sent as Authorization: Bearer", metavar="KEY"),
        Flag(
            name="workload",
            help="sharegpt (lognormal lengths), fixed, prefix (shared starts) or trace",
            metavar="KIND",
            default="sharegpt",
        ),
        Flag(
            name="trace-file",
            help="JSON lines; docs/benchmarks.md has the fields",
            metavar="FILE",
        ),
        Flag(
            name="input-tokens",
            help="of a prompt, or their mean; default 200, fixed 512, prefix 256",
            metavar="N",
            convert=int,
        ),
        Flag(
            name="output-tokens",
            help="of an answer, or their mean; default 190, fixed 128, prefix 64",
            metavar="N",
            convert=int,
        ),
        Flag(
            name="prefix-tokens",
            help="of a prompt that others share",
            metavar="N",
            convert=int,
            default=192,
        ),
        Flag(name="num-prefixes", help="different ones", metavar="N", convert=int, default=8),
        Flag(name="requests", help="of each load; a trace's own", metavar="N", convert=int),
        Flag(
            name="duration",
            help="seconds after which no request is sent any more",
            metavar="S",
            convert=float,
            default=600.0,
        ),
        Flag(
            name="timeout",
            help="seconds until a request counts as failed",
            metavar="S",
            convert=float,
            default=300.0,
        ),
        Flag(
            name="concurrency",
            help=(
                "requests at once, several for a sweep; default "
                f"{CLOSED_CONCURRENCY}, with a rate {OPEN_CONCURRENCY}"
            ),
            metavar="N,N",
        ),
        Flag(
            name="rate",
            help="requests per second, several for a sweep; without, the next follows the last",
            metavar="R,R",
        ),
        Flag(
            name="arrivals",
            help="poisson, constant or burst",
            metavar="KIND",
            default="poisson",
        ),
        Flag(
            name="burst-size",
            help="requests at the same moment",
            metavar="N",
            convert=int,
            default=8,
        ),
        Flag(
            name="speed",
            help="of a trace with timestamps: 2 is twice as fast",
            metavar="X",
            convert=float,
            default=1.0,
        ),
        Flag(
            name="goodput",
            help="count requests within these milliseconds: ttft:200 tpot:50 e2el:5000",
            metavar="NAME:MS",
            repeats=True,
        ),
        Flag(name="temperature", help="default: the server's", metavar="T", convert=float),
        Flag(
            name="no-ignore-eos",
            help="let answers end by themselves; for servers that refuse ignore_eos",
            convert=None,
        ),
        Flag(name="seed", help="of prompts and arrivals", metavar="N", convert=int, default=0),
        Flag(name="json", help="write the figures there; - is stdout", metavar="FILE"),
        Flag(name="html", help="write a page with charts there", metavar="FILE"),
    ),
)
_DEFAULT_LENGTHS = {
    Workload.SHAREGPT: (200, 190),
    Workload.FIXED: (512, 128),
    Workload.PREFIX: (256, 64),
    Workload.TRACE: (200, 190),
}
_DESCRIPTION = (
    "Send load to an OpenAI-compatible server and measure what it answers. Ctrl-C prints what was "
    "measured until then."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked. rates: () sends the next request as soon as one has ended, unless a trace
    says when; concurrencies: () is the default for either."""

    target: Target
    model: str | None
    api: Api
    api_key: str | None
    workload: Workload
    trace_file: str | None
    lengths: Lengths
    num_requests: int | None
    duration_s: float
    timeout_s: float
    concurrencies: tuple[int, ...]
    rates: tuple[float, ...]
    arrivals: Arrivals
    burst_size: int
    speed: float
    goodput: Mapping[str, float]
    temperature: float | None
    exact_length: bool
    seed: int
    json_file: str | None
    html_file: str | None


def parse_options(arguments: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Raises ConfigError naming the flag."""
    line = CommandLine("hal-bench serve", _DESCRIPTION, [_FLAGS], takes_model=False)
    parsed = line.parse(list(_spelled_out(arguments)), environ)
    given = {flag.dest: parsed.get(flag.dest, flag.default) for flag in _FLAGS.flags}
    if given["url"] is None:
        raise ConfigError(
            "hal-bench serve needs a URL, as in hal-bench serve http://127.0.0.1:8000"
        )
    workload = _choice(Workload, "workload", given)
    has_trace = given["trace_file"] is not None
    if has_trace != (workload is Workload.TRACE):
        raise ConfigError("--workload trace and --trace-file FILE belong together; give both")
    rates = _list("rate", given, float, 0.001, 100_000.0)
    concurrencies = _list("concurrency", given, int, 1, MAX_CONCURRENCY)
    if rates and len(concurrencies) > 1:
        raise ConfigError("--rate and several --concurrency: sweep over one of them")
    return Options(
        target=target_of(str(given["url"])),
        model=_text(given["model"]),
        api=_choice(Api, "api", given),
        api_key=_key(_text(given["api_key"])),
        workload=workload,
        trace_file=_text(given["trace_file"]),
        lengths=_lengths(workload, given),
        num_requests=None if given["requests"] is None else _whole("requests", given, MAX_REQUESTS),
        duration_s=_number("duration", given, 0.001),
        timeout_s=_number("timeout", given, 0.001),
        concurrencies=concurrencies,
        rates=rates,
        arrivals=_choice(Arrivals, "arrivals", given),
        burst_size=_whole("burst_size", given, MAX_REQUESTS),
        speed=_number("speed", given, 0.001),
        goodput=parse_goodput(_strings(given["goodput"])),
        temperature=None if given["temperature"] is None else _number("temperature", given, 0.0),
        exact_length=not given["no_ignore_eos"],
        seed=_whole("seed", given, 2**63, least=0),
        json_file=_text(given["json"]),
        html_file=_text(given["html"]),
    )


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """A URL that stands alone gets its flag, and so does each limit behind the first --goodput."""
    words: list[str] = []
    for word in arguments:
        before = words[-1] if words else ""
        is_value = before.startswith("--") and "=" not in before and before != "--no-ignore-eos"
        if is_value or word.startswith("-"):
            words.append(word)
        elif re.fullmatch(r"[a-z0-9]+:[0-9.]+", word) and "--goodput" in words[-2:]:
            words += ["--goodput", word]
        else:
            words += ["--url", word]
    return words


def _lengths(workload: Workload, given: Mapping[str, object]) -> Lengths:
    usual = dict(zip(("input_tokens", "output_tokens"), _DEFAULT_LENGTHS[workload], strict=True))
    known = {name: usual[name] if given[name] is None else given[name] for name in usual}
    num_input = _whole("input_tokens", known, MAX_REQUESTS)
    num_output = _whole("output_tokens", known, MAX_REQUESTS)
    if workload is not Workload.PREFIX:
        return Lengths(input=num_input, output=num_output)
    prefix = _whole("prefix_tokens", given, MAX_REQUESTS)
    if prefix >= num_input:
        raise ConfigError(
            f"--prefix-tokens {prefix} leaves nothing of --input-tokens {num_input} for a "
            "request's own part"
        )
    num_prefixes = _whole("num_prefixes", given, MAX_REQUESTS)
    return Lengths(input=num_input, output=num_output, prefix=prefix, num_prefixes=num_prefixes)


def _choice(kind: type[Choice], name: str, given: Mapping[str, object]) -> Choice:
    try:
        return kind(str(given[name]))
    except ValueError:
        raise ConfigError(f"--{name} {given[name]!r} is not one of {', '.join(kind)}") from None


def _list(
    name: str,
    given: Mapping[str, object],
    convert: Callable[[str], Number],
    least: float,
    most: float,
) -> tuple[Number, ...]:
    """() where nothing was given."""
    text = given[name]
    if text is None:
        return ()
    try:
        values = tuple(convert(part) for part in str(text).split(","))
    except ValueError:
        values = ()
    if not values or not all(least <= value <= most for value in values):
        kind = "whole numbers" if convert is int else "numbers"
        raise ConfigError(f"--{name} {text}: {kind} from {least:g} to {most:g} are wanted")
    return values


def _whole(name: str, given: Mapping[str, object], most: int, least: int = 1) -> int:
    value = given[name]
    assert isinstance(value, int)
    if not least <= value <= most:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} must be from {least} to {most}; got {value}")
    return value


def _number(name: str, given: Mapping[str, object], least: float) -> float:
    value = given[name]
    assert isinstance(value, float)
    if not least <= value < float("inf"):
        raise ConfigError(f"--{name} must be at least {least:g}; got {value:g}")
    return value


def _strings(value: object) -> list[str]:
    """Each may hold several with commas between."""
    if value is None:
        return []
    assert isinstance(value, list)
    return [part for item in value for part in str(item).split(",")]


def _key(text: str | None) -> str | None:
    if text is not None and not (text.isascii() and text.isprintable() and text.strip()):
        raise ConfigError("--api-key has characters that no HTTP header can have, or is empty")
    return text


def _text(value: object) -> str | None:
    assert value is None or isinstance(value, str)
    return value
