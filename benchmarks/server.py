"""What the HTTP front promises, measured on a scripted engine: only the server's own cost.

    python benchmarks/server.py                      # every scenario, about three minutes
    python benchmarks/server.py --only front,storm   # some of them

Each figure stands beside what it must be. The client shares the machine with the server, so that
latencies are upper bounds; CPU times are those of the front's process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import record
from server_client import Answer, ask, completion

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import fake_serving
from fake_serving import ServerProcess, fake_arguments, ids, rule, serving

STEP_S = 0.01
RULES = [rule("slow", tokens=ids("x" * 64), step_delay_s=STEP_S)]


@dataclass(frozen=True, slots=True)
class Figure:
    """One promise. `limit` is a bound from above, unless it says "at least"."""

    scenario: str
    what: str
    unit: str
    value: float
    limit: float
    is_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.is_least else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Target:
    """A running server and its front's process."""

    server: ServerProcess

    @property
    def port(self) -> int:
        return int(self.server.url.rsplit(":", 1)[1])

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def private_bytes(self) -> int:
        lines = Path(f"/proc/{self.server.process.pid}/smaps_rollup").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

    def num_files(self) -> int:
        return len(list(Path(f"/proc/{self.server.process.pid}/fd").iterdir()))

    async def until_idle(self) -> float:
        """Seconds until no request runs, waits or holds a block."""
        started_at = time.monotonic()
        while any(
            map(self.server.metric, ("num_requests_running", "num_requests_waiting"))
        ) or self.server.metric("kv_blocks", state="used"):
            await asyncio.sleep(0.01)
        return time.monotonic() - started_at


@contextmanager
def target(*flags: str, **script: object) -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as folder:
        model = fake_serving.write_byte_model(Path(folder) / "model")
        path = fake_serving.write_script(Path(folder) / "script.json", RULES, **script)
        with serving([*fake_arguments(model, path), "--log-level", "error", *flags]) as server:
            yield Target(server.wait_ready())


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


async def front() -> list[Figure]:
    """64 streams at once of an engine that takes no time."""
    num_streams, num_tokens = 64, 256
    with target(max_num_seqs=num_streams, num_blocks=10_000) as found:
        body = completion("abcd", num_tokens)
        costs, first = list[float](), list[float]()
        for _ in range(5):
            before = found.cpu_s()
            jobs = [ask(found.port, "POST", "/v1/completions", body) for _ in range(num_streams)]
            answers = await asyncio.gather(*jobs)
            assert all(len(a.tokens_at) >= num_tokens and a.is_whole for a in answers)
            costs.append((found.cpu_s() - before) / (num_streams * num_tokens))
        for _ in range(200):  # alone: what the front adds before the first token
            answer = await ask(found.port, "POST", "/v1/completions", completion("abcd", 1))
            first.append(answer.tokens_at[0])
    cost_us = 1e6 * statistics.median(costs)
    return [
        Figure("front", "CPU of the front per streamed token", "us", cost_us, 30),
        Figure("front", "tokens per core", "1/s", 1e6 / cost_us, 30_000, is_least=True),
        Figure("front", "first token, alone, p99", "ms", 1e3 * percentile(first, 0.99), 5),
    ]


async def storm() -> list[Figure]:
    """1,000 clients that leave at random points, while others stay."""
    draw = random.Random(1)
    with target(max_num_seqs=64, num_blocks=100_000) as found:
        await found.until_idle()
        files_before = found.num_files()
        neighbours = [
            asyncio.create_task(ask(found.port, "POST", "/v1/completions", completion("abc", 400)))
            for _ in range(4)
        ]

        async def leave() -> None:
            await asyncio.sleep(draw.uniform(0, 2))
            body = completion("ab", 400, stream=draw.random() < 0.5)
            await ask(
                found.port, "POST", "/v1/completions", body, leave_after=draw.choice((0, 1, 9))
            )

        await asyncio.gather(*(leave() for _ in range(1000)), return_exceptions=True)
        kept = await asyncio.gather(*neighbours)
        idle_s = await found.until_idle()
        files = found.num_files() - files_before
    return [
        Figure("storm", "until idle after the last client", "s", idle_s, 2),
        Figure("storm", "neighbours cut", "", sum(not a.is_whole for a in kept), 0),
        Figure("storm", "more open files behind it", "", files, 0),
    ]


async def overload() -> list[Figure]:
    """Ten times the load that it can serve, clients that come back when they are told to."""
    seconds, slots = 20.0, 4
    body = completion("slow", 8)
    with target("--max-queue-size", "16", max_num_seqs=slots) as found:
        peak = await _served(found, slots, 5.0, body, [], [])
        refusals, health = list[Answer](), list[float]()
        watching = asyncio.create_task(_watch(found, health))
        served = await _served(found, 10 * (slots + 16), seconds, body, refusals, health)
        watching.cancel()
        idle_s = await found.until_idle()
        after = await ask(found.port, "POST", "/v1/completions", body)
    refused_ms = [1e3 * answer.seconds for answer in refusals] or [0.0]
    without = sum("retry-after" not in answer.headers for answer in refusals)
    return [
        Figure("overload", "served, of the peak", "%", 100 * served / peak, 90, is_least=True),
        Figure("overload", "refusal, p99", "ms", percentile(refused_ms, 0.99), 50),
        Figure("overload", "refusals without Retry-After", "", without, 0),
        Figure("overload", "/health, p99", "ms", 1e3 * percentile(health, 0.99), 100),
        Figure("overload", "until idle", "s", idle_s, 10),
        Figure("overload", "served at once behind it", "", after.status == 200, 1, is_least=True),
    ]


async def _served(
    found: Target,
    num_clients: int,
    seconds: float,
    body: bytes,
    refusals: list[Answer],
    health: list[float],
) -> float:
    """Whole answers per second."""
    until = time.monotonic() + seconds
    whole = 0

    async def client() -> None:
        nonlocal whole
        while time.monotonic() < until:
            try:
                answer = await ask(found.port, "POST", "/v1/completions", body)
            except OSError:
                continue
            if answer.status == 200:
                whole += answer.is_whole
            else:
                refusals.append(answer)
                await asyncio.sleep(float(answer.headers.get("retry-after", "1")))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    return whole / seconds


async def _watch(found: Target, health: list[float]) -> None:
    while True:
        health.append((await ask(found.port, "GET", "/health")).seconds)
        await asyncio.sleep(0.05)


async def hostile() -> list[Figure]:
    """Bodies and connections that mean harm, beside one stream that must not feel them."""
    bodies = {
        "27 MB": (b'{"prompt": "' + b"a" * 27_000_000 + b'"}', (400,)),
        "100,000 levels": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", (400,)),
        "a stop of 1,000,000": (completion("a", 4, stop="x" * 1_000_000), (400,)),
        "40 MB": (b" " * 40_000_000, (413,)),
    }
    with target(max_num_seqs=64) as found:
        quiet = await _gaps(found)
        slow = [await asyncio.open_connection("127.0.0.1", found.port) for _ in range(500)]
        for _, writer in slow:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-A: ")
        watched = asyncio.create_task(_gaps(found))
        wrong = 0
        for _ in range(2):
            for body, allowed in bodies.values():
                answer = await ask(found.port, "POST", "/v1/completions", body)
                wrong += answer.status not in allowed
        attacked = await watched
        late_s = found.server.metric("event_loop_lag_seconds")
        for _, writer in slow:
            writer.close()
        idle_s = await found.until_idle()
    slower = 100 * (attacked / quiet - 1)
    return [
        Figure("hostile", "wrong answers to hostile bodies", "", wrong, 0),
        Figure("hostile", "a neighbour's p99 gap, more than alone", "%", slower, 10),
        Figure("hostile", "event loop late, at most", "ms", 1e3 * late_s, 100),
        Figure("hostile", "until idle", "s", idle_s, 2),
    ]


async def _gaps(found: Target) -> float:
    """The p99 of the time between two tokens of a stream."""
    answer = await ask(found.port, "POST", "/v1/completions", completion("slow", 450))
    at = answer.tokens_at
    return percentile([b - a for a, b in zip(at, at[1:], strict=False)], 0.99)


async def soak() -> list[Figure]:
    """Many requests, some of them left: memory must not grow with them."""
    num_rounds, num_requests = 12, 500
    draw = random.Random(2)
    with target(max_num_seqs=64, num_blocks=100_000) as found:
        sizes, files = list[int](), list[int]()
        for _ in range(num_rounds):
            left = [draw.choice((None, None, 0, 2)) for _ in range(num_requests)]
            for start in range(0, num_requests, 50):
                jobs = [
                    ask(
                        found.port,
                        "POST",
                        "/v1/completions",
                        completion("ab", 8),
                        leave_after=after,
                    )
                    for after in left[start : start + 50]
                ]
                await asyncio.gather(*jobs, return_exceptions=True)
            await found.until_idle()
            sizes.append(found.private_bytes())
            files.append(found.num_files())
    # The first rounds fill caches and pools.
    xs = [float(num_requests * i) for i in range(num_rounds - 4)]
    slope = statistics.linear_regression(xs, [float(size) for size in sizes[4:]]).slope
    return [
        Figure("soak", "private memory", "B per request", slope, 50),
        Figure("soak", "more open files at the end", "", files[-1] - files[4], 2),
    ]


SCENARIOS: dict[str, Callable[[], Coroutine[None, None, list[Figure]]]] = {
    "front": front,
    "storm": storm,
    "overload": overload,
    "hostile": hostile,
    "soak": soak,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help=f"of {', '.join(SCENARIOS)}", metavar="A,B")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "server.json")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not a scenario; there are {', '.join(SCENARIOS)}")
    report, figures = record.header("server"), list[Figure]()
    for name in names:
        for figure in asyncio.run(SCENARIOS[name]()):
            figures.append(figure)
            bound = f"{'>=' if figure.is_least else '<='} {figure.limit:g}"
            verdict = "holds" if figure.holds else "DOES NOT HOLD"
            print(
                f"{figure.scenario:<9} {figure.what:<40} {figure.value:>10.1f} {figure.unit:<14}"
                f" {bound:<9} {verdict}",
                flush=True,
            )
    rows = [{**asdict(figure), "holds": figure.holds} for figure in figures]
    record.write(options.out, {**report, "figures": rows})
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
