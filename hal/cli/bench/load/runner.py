"""Sends one load and waits for its answers; open loop (a rate) or closed (so many at once).

Every time is measured from when a request was due, sent or not: a server that keeps the generator
waiting cannot hide that. How late the generator itself was is measured beside it.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hal.cli.bench.load.http_client import HttpClient
from hal.cli.bench.load.stream import Record, Style, ask

_LAG_INTERVAL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One point of a sweep.

    offsets: seconds from the start at which requests are due; None sends the next one as soon as
    fewer than `concurrency` run
    """

    name: str
    concurrency: int
    offsets: Sequence[float] | None
    timeout_s: float
    duration_s: float


@dataclass(slots=True)
class Point:
    """What one load showed; lag_s: how late each timer of the event loop was."""

    load: Load
    records: list[Record] = field(default_factory=list)
    num_unfinished: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    started_s: float = 0.0
    lag_s: array[float] = field(default_factory=lambda: array("d"))


class Runner:
    """Runs loads one after another; stop() ends the one that runs, with what it has."""

    def __init__(self, client: HttpClient, style: Style, on_done: Callable[[Record], None]) -> None:
        self._client = client
        self._style = style
        self._on_done = on_done
        self._stop = asyncio.Event()

    def stop(self) -> None:
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set()

    async def run(self, load: Load, bodies: Sequence[bytes]) -> Point:
        point = Point(load)
        point.started_s, cpu_s = time.perf_counter(), time.process_time()
        send = self._closed if load.offsets is None else self._open
        sending = asyncio.create_task(send(point, bodies))
        stopping = asyncio.create_task(self._stop.wait())
        lag = asyncio.create_task(_watch_lag(point.lag_s))
        await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, stopping, lag):
            task.cancel()
        ended = await asyncio.gather(sending, stopping, lag, return_exceptions=True)
        point.seconds = time.perf_counter() - point.started_s
        point.cpu_s = time.process_time() - cpu_s
        if isinstance(ended[0], Exception):
            raise ended[0]
        return point

    async def _open(self, point: Point, bodies: Sequence[bytes]) -> None:
        load = point.load
        assert load.offsets is not None
        places = asyncio.Semaphore(load.concurrency)
        place_at_s = 0.0  # when the last one had to be waited for

        async def one(record: Record, body: bytes) -> None:
            try:
                await self._ask(point, record, body)
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            for offset, body in zip(load.offsets, bodies, strict=True):
                if offset > load.duration_s:
                    break
                due_s = point.started_s + offset
                await asyncio.sleep(due_s - time.perf_counter())
                has_to_wait = places.locked()
                await places.acquire()
                if has_to_wait:
                    place_at_s = time.perf_counter()
                group.create_task(one(Record(due_s, max(due_s, place_at_s)), body))

    async def _closed(self, point: Point, bodies: Sequence[bytes]) -> None:
        remaining = iter(bodies)
        end_s = point.started_s + point.load.duration_s

        async def one_after_another() -> None:
            for body in remaining:
                if time.perf_counter() > end_s:
                    return
                now = time.perf_counter()
                await self._ask(point, Record(now, now), body)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(point.load.concurrency, len(bodies))):
                group.create_task(one_after_another())

    async def _ask(self, point: Point, record: Record, body: bytes) -> None:
        point.num_unfinished += 1
        await ask(self._client, self._style, record, body, point.load.timeout_s)
        point.num_unfinished -= 1
        point.records.append(record)
        self._on_done(record)


async def _watch_lag(lag_s: array[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_LAG_INTERVAL_S)
        lag_s.append(max(0.0, time.perf_counter() - before - _LAG_INTERVAL_S))
