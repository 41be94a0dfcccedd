"""What a user waits for: --help, hal-info, and every command from typing it to the first token.

    python benchmarks/startup.py
    python benchmarks/startup.py --model qwen2.5-0.5b --quantization int4 [--all] [--from-disk]

Runs the installed or checked-out commands as processes; wall time, median and range. With a model,
a new process's start that quantises the checkpoint and one from the pack cache, in turn; --all adds
the start that keeps what it made, and hal-serve. --from-disk drops the model's files and its entry
from the page cache before each start. Each start waits until the machine is quiet.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import record
from peers.machine import busy_seconds

BODY = json.dumps({"stream": True, "max_tokens": 1, "prompt": "Hello", "temperature": 0})
GIVE_UP_S = 60.0
REMEMBERED_S = 61.0  # hashes of files that are younger than a minute are not remembered
QUIET_CORES = 0.25  # that others keep busy
WINDOW_S = 0.5

Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Command:
    """One way to call a command: words after its name, and a cache folder of its own if any."""

    name: str
    words: tuple[str, ...] = ()
    cache: Path | None = None

    @property
    def line(self) -> list[str]:
        return [sys.executable, "-P", "-m", f"hal.cli.{self.name}", *self.words]

    @property
    def environment(self) -> dict[str, str]:
        """As a user has it: compiled modules are kept, no setting of ours is around."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HAL_", "PYTHONDONT"))}
        return kept if self.cache is None else {**kept, "HAL_CACHE_FOLDER": str(self.cache)}

    def start(self, *more: str, stdout: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.line, *more], env=self.environment, stdout=stdout, stderr=subprocess.DEVNULL
        )


def whole_run(command: Command) -> float:
    start = time.perf_counter()
    if command.start().wait():
        raise SystemExit(f"{' '.join(command.line)} failed")
    return time.perf_counter() - start


def first_answer(command: Command) -> float:
    """hal-run until its answer of one token begins."""
    start = time.perf_counter()
    with command.start(
        *("--prompt", "Hello", "--max-tokens", "1", "--temperature", "0"), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        has_answer = bool(process.stdout.read(1))
        seconds = time.perf_counter() - start
    if not has_answer or process.returncode:
        raise SystemExit(f"{' '.join(command.line)} gave no answer")
    return seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first_token(command: Command) -> float:
    """hal-serve, asked until a stream gives a token."""
    port = free_port()
    start = time.perf_counter()
    server = command.start("--port", str(port))
    try:
        while not has_token(port):
            if time.perf_counter() - start > GIVE_UP_S or server.poll() is not None:
                raise SystemExit(f"hal-serve gave no token in {GIVE_UP_S:.0f} s")
            time.sleep(0.01)
        return time.perf_counter() - start
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def has_token(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP_S)
    headers = {"content-type": "application/json"}
    try:
        connection.request("POST", "/v1/completions", BODY, headers)
        response = connection.getresponse()
        if response.status != 200:
            return False
        chunks = (json.loads(line[6:]) for line in response if line.startswith(b"data: {"))
        # A token of random weights may be no text; the answer ends with it all the same.
        return any(c["choices"][0]["text"] or c["choices"][0]["finish_reason"] for c in chunks)
    except OSError:
        return False
    finally:
        connection.close()


def embedded_cases() -> Mapping[str, Measure]:
    return {
        "hal-serve --help": lambda: whole_run(Command("serve", ("--help",))),
        "hal-run --help": lambda: whole_run(Command("run", ("--help",))),
        "hal-info": lambda: whole_run(Command("info")),
        "hal-run to first token": lambda: first_answer(Command("run")),
        "hal-serve to first token": lambda: first_token(Command("serve")),
    }


def model_cases(
    folder: Path, quantization: str, cache: Path, *, from_disk: bool, all_cases: bool
) -> Mapping[str, Measure]:
    """The same start with nothing kept, and from what was kept; or also keeping what it makes."""
    words = (str(folder), "--quantization", quantization, "--device", "cpu")
    kept, empty = cache / "kept", cache / "empty"
    uncached = (*words, "--no-cache")

    def prepared(measure: Callable[[Command], float], command: Command) -> Measure:
        def run() -> float:
            shutil.rmtree(empty, ignore_errors=True)
            if from_disk:
                drop_from_page_cache(folder, kept)
            return measure(command)

        return run

    def from_kept(measure: Callable[[Command], float], name: str) -> Measure:
        start = prepared(measure, Command(name, words, kept))
        return lambda: from_cache(start, folder, kept)

    cases = {
        "hal-run, quantising": prepared(first_answer, Command("run", uncached)),
        "hal-run, from the cache": from_kept(first_answer, "run"),
    }
    if all_cases:
        cases |= {
            "hal-run, keeping": prepared(first_answer, Command("run", words, empty)),
            "hal-serve, quantising": prepared(first_token, Command("serve", uncached)),
            "hal-serve, from the cache": from_kept(first_token, "serve"),
        }
    return cases


def from_cache(start: Measure, folder: Path, kept: Path) -> float:
    """A start that must have read an entry; the first one makes it."""
    before = entries_of(kept)
    if not before:
        wait_until_remembered(folder)
        start()
        before = entries_of(kept)
    seconds = start()
    if not was_read(before, entries_of(kept)):
        # Made by other sources, or with a hash that nobody remembered: it has been made again.
        before = entries_of(kept)
        seconds = start()
        if not was_read(before, entries_of(kept)):
            raise SystemExit(f"the entry in {kept} is not read: nothing of this can be measured")
    return seconds


def entries_of(kept: Path) -> dict[int, int]:
    """inode -> when it was last used."""
    found = (path.stat() for path in kept.glob("*.packed"))
    return {status.st_ino: status.st_mtime_ns for status in found}


def was_read(before: Mapping[int, int], after: Mapping[int, int]) -> bool:
    """A start that reads an entry marks it as used; one that makes it replaces the file."""
    return before.keys() == after.keys() and any(after[key] > before[key] for key in before)


def drop_from_page_cache(*folders: Path) -> None:
    """What was read from these folders must come from the disk again; needs no privilege."""
    for path in (path for folder in folders for path in files_below(folder)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def wait_until_remembered(folder: Path) -> None:
    """Only a checkpoint that was made just now is too young."""
    youngest = max(path.stat().st_ctime for path in files_below(folder))
    time.sleep(max(0.0, youngest + REMEMBERED_S - time.time()))


def settle(limit_s: float) -> bool:
    """Wait until hardly anything runs, at most so long; whether it came to that.

    This process waits, so all that is busy is others: what a start before this one left running
    too, such as pages on their way to the disk.
    """
    until = time.monotonic() + limit_s
    while True:
        busy, began_at = busy_seconds(), time.monotonic()
        time.sleep(WINDOW_S)
        if (busy_seconds() - busy) / (time.monotonic() - began_at) <= QUIET_CORES:
            return True
        if time.monotonic() >= until:
            return False


@dataclass(frozen=True, slots=True)
class Measured:
    """seconds: case -> one number a round; num_loud: starts on a machine that did not settle."""

    seconds: Mapping[str, list[float]]
    num_loud: int


def measure_all(cases: Mapping[str, Measure], num_rounds: int, settle_s: float) -> Measured:
    """All cases in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    num_loud = 0
    for measure in cases.values():
        measure()
    for _ in range(num_rounds):
        for name, measure in cases.items():
            num_loud += not settle(settle_s)
            seconds[name].append(measure())
    return Measured(seconds, num_loud)


def ratios(seconds: Mapping[str, list[float]]) -> dict[str, record.Spread]:
    """Of each case to the first one, round by round; below 1 it is quicker."""
    first, *others = seconds
    return {
        name: record.spread([b / a for a, b in zip(seconds[first], seconds[name], strict=True)])
        for name in others
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", choices=models.SHAPES, help="the embedded one without this")
    parser.add_argument("--models", type=Path, default=Path("/tmp/hal-models"))
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--from-disk", action="store_true")
    parser.add_argument("--all", action="store_true", help="also hal-serve, and keeping an entry")
    parser.add_argument(
        "--settle", type=float, default=10.0, metavar="S", help="most seconds to wait for quiet"
    )
    options = parser.parse_args()
    name, cases, settings = "startup", embedded_cases(), {}
    if options.model is not None:
        folder = models.make_model(options.model, options.models)
        cases = model_cases(
            folder,
            options.quantization,
            options.models / f"cache-of-{options.model}",
            from_disk=options.from_disk,
            all_cases=options.all,
        )
        where = "-from-disk" if options.from_disk else ""
        name = f"startup-{options.model}-{options.quantization}{where}"
        settings = {"model": options.model, "quantization": options.quantization}
    header = {**record.header(name), **settings}
    measured = measure_all(cases, options.runs, options.settle)
    rows = {case: record.spread(taken) for case, taken in measured.seconds.items()}
    to_first = ratios(measured.seconds) if options.model is not None else {}
    for case, row in rows.items():
        ratio = f"  x {to_first[case].median:.3f}" if case in to_first else ""
        sys.stdout.write(
            f"{case:<26} {row.median:.2f} s ({row.lowest:.2f} - {row.highest:.2f}){ratio}\n"
        )
    if measured.num_loud:
        sys.stdout.write(
            f"{measured.num_loud} of {len(cases) * options.runs} starts were on a machine that "
            f"others kept busy; trust none of this\n"
        )
    report = {
        **header,
        "num_loud_starts": measured.num_loud,
        "seconds": {case: asdict(row) for case, row in rows.items()},
        "ratio_to_the_first": {case: asdict(ratio) for case, ratio in to_first.items()},
    }
    record.write(record.RESULTS / f"{name}.json", report)


if __name__ == "__main__":
    main()
