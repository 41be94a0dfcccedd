"""`hal-info doctor`: runs quick self-tests on every usable device, each in a process of its own."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING

from hal.cli.arguments import CommandLine, Flag, FlagGroup
from hal.exit_status import exit_words, last_words

if TYPE_CHECKING:
    from hal.cli.info.selftest import Result
    from hal.report import ProbeReport

PROG = "hal-info doctor"
SCHEMA_VERSION = 1
# Compiling a first kernel takes an accelerator tens of seconds; a hang takes longer.
TIMEOUT_S = 120.0
EXIT_FAILED = 1
_DESCRIPTION = (
    "Copies, multiplies and runs each kernel once on every usable device (or the one named), and "
    "prints PASS, FAIL or SKIP with the reason. Exit code 1: something failed; 2: the device named "
    "by --device cannot be used."
)
_FLAGS = FlagGroup(
    "what to test",
    (
        Flag(name="device", help="one device; default all usable ones", metavar="NAME"),
        Flag(name="json", help="print one JSON object instead of text", convert=None),
    ),
)


@dataclass(frozen=True, slots=True)
class Examined:
    """One device with its results; where it could not be tested, `reason` says why."""

    spec: str
    reason: str
    results: tuple[Result, ...]


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print every result as it comes; 1 if one failed."""
    line = CommandLine(PROG, _DESCRIPTION, [_FLAGS], takes_model=False)
    values = line.parse(argv, environ)
    named = values.get("device")
    as_json = bool(values.get("json"))
    examined = []
    for spec, reason in _devices(None if named is None else str(named)):
        if not as_json:
            print(f"{spec}" + (f": not tested: {reason}" if reason else ""), flush=True)
        results = () if reason else tuple(_show(examine(command_for(spec)), quiet=as_json))
        examined.append(Examined(spec, reason, results))
    failures = [(e.spec, r) for e in examined for r in e.results if r.verdict == "FAIL"]
    print(_as_json(examined) if as_json else _summary(examined))
    if not failures:
        return 0
    spec, first = failures[0]
    cause = f"{len(failures)} failed; the first: {spec} {first.test}: {first.detail}"
    print(f"{PROG}: {cause}", file=sys.stderr)
    return EXIT_FAILED


def _devices(named: str | None) -> Iterator[tuple[str, str]]:
    """(spec, reason why it cannot be tested) of each device; raises where the named one cannot."""
    from hal.cli.info.target import find_target
    from hal.devices import probe

    if named is not None:
        find_target(named)  # raises where it cannot be used; a pose is tested as what it is
        yield named, ""
        return
    report: ProbeReport = probe()
    for device in report.devices:
        yield device.spec, device.reason


def command_for(spec: str) -> list[str]:
    return [sys.executable, "-P", "-m", "hal.cli.info.selftest", spec, str(os.getpid())]


def examine(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> Iterator[Result]:
    """Run the child and yield its results; its death or silence is a result as well."""
    from hal.cli.info.selftest import MARK, Result, Verdict

    running = "start"
    # stderr goes to a file: a chatty driver would fill a pipe that nobody empties.
    with tempfile.TemporaryFile() as said, _child(command, said) as child:
        try:
            for text in _lines(child, timeout_s):
                if not text.startswith(MARK):
                    continue
                event = json.loads(text.removeprefix(MARK))
                if "begin" in event:
                    running = event["begin"]
                else:
                    running = "end"
                    yield Result(event["test"], Verdict(event["verdict"]), event["detail"])
            if child.wait(timeout_s) != 0:
                yield Result(running, Verdict.FAIL, _death(child.returncode, said))
        except (TimeoutError, subprocess.TimeoutExpired):
            yield Result(running, Verdict.FAIL, f"no answer within {timeout_s:g} s: it hangs")


@contextmanager
def _child(command: Sequence[str], stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def _lines(child: subprocess.Popen[bytes], timeout_s: float) -> Iterator[str]:
    """Lines of the child's stdout; raises TimeoutError after `timeout_s` of silence."""
    assert child.stdout is not None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout_s):
                raise TimeoutError
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)


def _death(code: int, stderr: IO[bytes]) -> str:
    stderr.seek(0)
    said = last_words(stderr.read().decode(errors="replace"))
    last = f": {said}" if said else ""
    return f"the process died with {exit_words(code)}{last}"


def _show(results: Iterator[Result], *, quiet: bool) -> Iterator[Result]:
    for result in results:
        if not quiet:
            print(f"  {result.verdict:<4}  {result.test:<29} {result.detail}", flush=True)
        yield result


def _counts(examined: Sequence[Examined]) -> dict[str, int]:
    verdicts = [str(r.verdict) for e in examined for r in e.results]
    return {name: verdicts.count(name) for name in ("PASS", "FAIL", "SKIP")}


def _summary(examined: Sequence[Examined]) -> str:
    counts = _counts(examined)
    num_tested = sum(1 for e in examined if not e.reason)
    devices = "1 device" if num_tested == 1 else f"{num_tested} devices"
    return (
        f"{devices} tested: {counts['PASS']} passed, {counts['FAIL']} failed, "
        f"{counts['SKIP']} skipped"
    )


def _as_json(examined: Sequence[Examined]) -> str:
    return json.dumps(
        {
            "schema": SCHEMA_VERSION,
            "devices": [asdict(e) for e in examined],
            "counts": _counts(examined),
        },
        indent=2,
    )
