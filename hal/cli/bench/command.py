"""`hal-bench SUBCOMMAND`: what a recorded trace shows, and what a server does under load."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from hal.cli.arguments import CommandLine, Flag, FlagGroup, report_error
from hal.cli.bench.cache_replay import print_replays
from hal.cli.bench.timeline import write_timeline
from hal.cli.bench.trace_file import Lines, read_lines
from hal.env import environment, wants_traceback
from hal.errors import ConfigError, HalError

PROG = "hal-bench"
EXIT_INTERRUPTED = 130
DEFAULT_BLOCKS = "1024,8192"
USAGE = f"""usage: {PROG} serve URL [--concurrency N,N...] [--rate R,R...] [--html FILE] ...
       {PROG} timeline FILE [--html FILE]
       {PROG} cache-replay FILE [--blocks N,N...] [--block-size N] [--cache-ttl SECONDS]

serve          send load to any OpenAI-compatible server: latencies, throughput, goodput
timeline       draw what `hal-serve --trace FILE` wrote: who ran, the KV pool, preemptions
cache-replay   the hit rate that each --cache-policy would have had on a trace of prompts

All have --help."""

_TIMELINE = FlagGroup(
    "timeline",
    (
        Flag(name="steps", help="what --trace wrote", metavar="FILE"),
        Flag(name="html", help="the page to write; default FILE.html", metavar="FILE"),
    ),
)
_REPLAY = FlagGroup(
    "cache-replay",
    (
        Flag(name="requests", help="one JSON object per request, in order", metavar="FILE"),
        Flag(name="blocks", help="sizes of the pool", metavar="N,N", default=DEFAULT_BLOCKS),
        Flag(name="block-size", help="tokens per block", metavar="N", convert=int, default=16),
        Flag(
            name="cache-ttl",
            help="seconds that an unused prefix is kept",
            metavar="SECONDS",
            convert=float,
            default=3600.0,
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments, environment())
    except HalError as error:
        if wants_traceback():
            raise
        return report_error(PROG, error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(arguments: list[str], environ: Mapping[str, str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("", "-h", "--help"):
        print(USAGE)
        return 0
    if name == "serve":
        from hal.cli.bench.load.command import bench_serve

        return bench_serve(arguments[1:], environ)
    if name == "timeline":
        return _timeline(arguments[1:], environ)
    if name == "cache-replay":
        return _cache_replay(arguments[1:], environ)
    raise ConfigError(f"unknown subcommand {name!r}; choose serve, timeline or cache-replay")


def _timeline(arguments: list[str], environ: Mapping[str, str]) -> int:
    given = _parsed("timeline", _TIMELINE, "steps", arguments, environ)
    source = str(given["steps"])
    target = str(given.get("html", f"{source}.html"))
    num_steps = write_timeline(read_lines(source), target)
    print(f"{target}: {num_steps} steps")
    return 0


def _cache_replay(arguments: list[str], environ: Mapping[str, str]) -> int:
    given = _parsed("cache-replay", _REPLAY, "requests", arguments, environ)
    lines: Lines = read_lines(str(given["requests"]))
    sizes = str(given.get("blocks", DEFAULT_BLOCKS)).split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ConfigError(f"--blocks {','.join(sizes)} is no list of whole numbers above 0")
    block_size, ttl_s = given.get("block_size", 16), given.get("cache_ttl", 3600.0)
    assert isinstance(block_size, int) and isinstance(ttl_s, float)
    if block_size < 1:
        raise ConfigError(f"--block-size must be at least 1; got {block_size}")
    print_replays(lines, [int(size) for size in sizes], block_size, ttl_s)
    return 0


def _parsed(
    name: str, group: FlagGroup, file: str, arguments: list[str], environ: Mapping[str, str]
) -> dict[str, object]:
    """The flags of a subcommand; its file may stand alone."""
    if arguments and not arguments[0].startswith("-"):
        arguments = [f"--{file}", *arguments]
    line = CommandLine(f"{PROG} {name}", USAGE, [group], takes_model=False)
    given = line.parse(arguments, environ)
    if file not in given:
        raise ConfigError(f"{PROG} {name} needs a file; see {PROG} --help")
    return given
