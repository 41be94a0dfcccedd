"""One all-reduce between processes of this machine, beside a copy of the same bytes.

    python benchmarks/all_reduce.py [--ranks 2] [--collective shared-memory] [--output FILE]

Each rank has one thread. Ranks that share a core wait for the system to switch between them: on a
busy machine only the lowest time says something of the code.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import record
import torch

from hal.collective import Collective
from hal.config import COLLECTIVES
from hal.ranks.connect import Meeting, arrange, connect
from hal.share import Share

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 4 << 20)
_WARM_UP, _ROUNDS = 100, 1000


def times_us(group: Collective, num_bytes: int) -> list[float]:
    """Of each all-reduce, as this rank sees it."""
    x, found = torch.ones(num_bytes // 4), []
    for _ in range(_WARM_UP + _ROUNDS):
        x.fill_(1.0)
        start = time.perf_counter_ns()
        group.all_reduce(x)
        found.append((time.perf_counter_ns() - start) / 1000)
    group.check()
    assert bool((x == group.size).all()), "the sum is wrong"
    return found[_WARM_UP:]


def copy_us(num_bytes: int) -> float:
    """The quickest of many copies."""
    x, y, found = torch.ones(num_bytes // 4), torch.empty(num_bytes // 4), []
    for _ in range(_ROUNDS):
        start = time.perf_counter_ns()
        y.copy_(x)
        found.append((time.perf_counter_ns() - start) / 1000)
    return min(found)


def run_rank(share: Share, meeting: Meeting, answers: Connection) -> None:
    torch.set_num_threads(1)
    group = connect(meeting.collective, share, meeting.point)
    times = [times_us(group, num_bytes) for num_bytes in SIZES]
    if share.rank == 0:
        answers.send(times)


def measure(num_ranks: int, collective: str) -> list[dict[str, object]]:
    """A row for each size; ranks are forked, so that they inherit the meeting."""
    meeting = arrange(collective, num_ranks)
    context = mp.get_context("fork")
    ours, theirs = context.Pipe()
    processes = [
        context.Process(target=run_rank, args=(Share(rank, num_ranks), meeting, theirs))
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    times = ours.recv()  # of rank 0
    for process in processes:
        process.join()
    meeting.close()
    return [
        {
            "kib": num_bytes >> 10,
            "collective": meeting.collective,
            "us": asdict(record.spread(times[index])),
            "copy_us": round(copy_us(num_bytes), 2),
        }
        for index, num_bytes in enumerate(SIZES)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--collective", choices=COLLECTIVES, default=COLLECTIVES[0])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments.ranks, arguments.collective)
    for row in rows:
        print(row)
    if arguments.output is not None:
        report = {**record.header("all_reduce"), "ranks": arguments.ranks, "rows": rows}
        record.write(arguments.output, report)


if __name__ == "__main__":
    main()
