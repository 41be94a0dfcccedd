"""Ranks as threads of one process: each waits for the others in native code, without the lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from hal.collective import Collective
from hal.kernels.cpu.collective import SharedMemoryCollective, create_region
from hal.kernels.cpu.native import ranks_unavailable
from hal.share import Share

Result = TypeVar("Result")
TIMEOUT_S = 60.0


def run_ranks(
    size: int, run: Callable[[Collective], Result], timeout_s: float = TIMEOUT_S
) -> list[Result]:
    """run(collective) on every rank at once; what each returned. Skips without native code."""
    if reason := ranks_unavailable():
        pytest.skip(reason)
    region = create_region(size)
    group = [SharedMemoryCollective(Share(rank, size), region, timeout_s) for rank in range(size)]
    os.close(region)

    def guarded(collective: Collective) -> Result:
        try:
            return run(collective)
        except BaseException:
            collective.abort()  # the others must not wait for it
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, collective) for collective in group]
    failed = [error for f in futures if (error := f.exception()) is not None]
    if failed:
        raise min(failed, key=lambda error: "has left the group" in str(error))
    return [future.result() for future in futures]
