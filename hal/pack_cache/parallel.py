"""Reading, writing and hashing in several threads: all of it happens outside Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

_MOST_THREADS = 8  # more saturate no disk, and reading from memory is done by then


def in_threads(
    work: Callable[[_T], _R], items: Iterable[_T], num_threads: int, take: Callable[[_R], None]
) -> None:
    """take(work(item)) of each, in order, taken in this thread; raises the first error.

    Not a generator: whatever is raised, no thread is at work any more when this returns, so that
    memory and file may be used for something else.
    """
    pool = ThreadPoolExecutor(max(1, min(num_threads, _MOST_THREADS)))
    try:
        for result in pool.map(work, items):
            take(result)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_exactly(fd: int, target: memoryview, offset: int) -> bool:
    """Fill `target` from this place of the file; False where the file ends before that."""
    done = 0
    while done < target.nbytes:
        count = os.preadv(fd, [target[done:]], offset + done)
        if count == 0:
            return False
        done += count
    return True


def write_exactly(fd: int, source: memoryview, offset: int) -> None:
    done = 0
    while done < source.nbytes:
        done += os.pwrite(fd, source[done:], offset + done)
