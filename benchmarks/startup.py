"""What a user waits for: --help, hal-info, and every command from typing it to the first token.

    python benchmarks/startup.py
    python benchmarks/startup.py --model qwen2.5-0.5b --quantization int4 [--from-disk]

Runs the installed or checked-out commands as processes; wall time, median and range. With a model,
its start from the checkpoint and from the pack cache, in turn. --from-disk drops the model's files
and its entry from the page cache before each start.
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

BODY = json.dumps({"stream": True, "max_tokens": 1, "prompt": "Hello", "temperature": 0})
GIVE_UP_S = 60.0
SETTLED_S = 61.0  # hashes of files that are younger than a minute are not remembered

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

    def start(self, *more: str, **streams: int) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*self.line, *more], env=self.environment, **{**quiet, **streams})


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
    folder: Path, quantization: str, cache: Path, *, from_disk: bool
) -> Mapping[str, Measure]:
    """The same start with nothing kept, keeping what it makes, and from what was kept."""
    words = (str(folder), "--quantization", quantization, "--device", "cpu")
    kept, empty = cache / "kept", cache / "empty"

    def prepared(measure: Callable[[Command], float], command: Command) -> Measure:
        def run() -> float:
            shutil.rmtree(empty, ignore_errors=True)
            if from_disk:
                drop_from_page_cache(folder, kept)
            return measure(command)

        return run

    return {
        "hal-run --no-cache": prepared(first_answer, Command("run", (*words, "--no-cache"))),
        "hal-run, keeping": prepared(first_answer, Command("run", words, empty)),
        "hal-run, from the cache": prepared(first_answer, Command("run", words, kept)),
        "hal-serve --no-cache": prepared(first_token, Command("serve", (*words, "--no-cache"))),
        "hal-serve, from the cache": prepared(first_token, Command("serve", words, kept)),
    }


def drop_from_page_cache(*folders: Path) -> None:
    """What was read from these folders must come from the disk again; needs no privilege."""
    for path in (path for folder in folders for path in files_below(folder)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def settle(folder: Path) -> None:
    youngest = max(path.stat().st_ctime for path in files_below(folder))
    time.sleep(max(0.0, youngest + SETTLED_S - time.time()))


def measure_all(cases: Mapping[str, Measure], num_rounds: int) -> dict[str, dict[str, object]]:
    """All cases in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(num_rounds + 1):
        for name, measure in cases.items():
            taken = measure()
            if index:
                seconds[name].append(taken)
    return {name: asdict(record.spread(taken)) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", choices=models.SHAPES, help="the embedded one without this")
    parser.add_argument("--models", type=Path, default=Path("/tmp/hal-models"))
    parser.add_argument("--quantization", default="int4")
    parser.add_argument("--from-disk", action="store_true")
    options = parser.parse_args()
    name, cases, settings = "startup", embedded_cases(), {}
    if options.model is not None:
        folder = models.make_model(options.model, options.models)
        settle(folder)
        cases = model_cases(
            folder,
            options.quantization,
            options.models / f"cache-of-{options.model}",
            from_disk=options.from_disk,
        )
        where = "-from-disk" if options.from_disk else ""
        name = f"startup-{options.model}-{options.quantization}{where}"
        settings = {"model": options.model, "quantization": options.quantization}
    header = {**record.header(name), **settings}
    rows = measure_all(cases, options.runs)
    for case, row in rows.items():
        sys.stdout.write(f"{case:<26} {row['median']:.2f} s\n")
    record.write(record.RESULTS / f"{name}.json", {**header, "seconds": rows})


if __name__ == "__main__":
    main()
