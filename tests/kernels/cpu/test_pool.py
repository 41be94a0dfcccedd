"""The native kernels' threads: callers take turns, and a fork begins with threads of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from own_process import run_alone

from hal.kernels.cpu import native

ROWS, WIDTH = 997, 48

# Calls a kernel on two threads, forks, and calls it again on both sides; the parent's exit code is
# the child's where that is not 0. A pool that lost its threads would wait for ever.
FORK = """
import os, signal
import torch
from hal.kernels.cpu import native

def gathers():
    table = torch.arange(64.0).reshape(32, 2)
    ids = torch.arange(32, dtype=torch.int32).flip(0)
    out = torch.empty(32, 2)
    native.load().gather_rows(table.data_ptr(), 32, 8, ids.data_ptr(), 32, out.data_ptr(), 8, 8, 2)
    return torch.equal(out, table.flip(0))

signal.alarm(60)
assert gathers()
child = os.fork()
if child == 0:
    os._exit(0 if gathers() else 1)
assert gathers()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(autouse=True)
def _needs_native_module() -> None:
    if reason := native.unavailable():
        pytest.skip(reason)


def gathered(table: torch.Tensor, ids: torch.Tensor, num_threads: int) -> torch.Tensor:
    out = torch.full((len(ids), WIDTH), float("nan"))
    native.load().gather_rows(
        *(table.data_ptr(), ROWS, 4 * WIDTH, ids.data_ptr(), len(ids)),
        *(out.data_ptr(), 4 * WIDTH, 4 * WIDTH, num_threads),
    )
    return out


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8, 300])
@pytest.mark.parametrize("num_rows", [1, 17, 18, 64, ROWS])
def test_every_row_is_done(num_threads: int, num_rows: int) -> None:
    """Also with more threads than rows or cores."""
    table = torch.randn(ROWS, WIDTH)
    ids = torch.randperm(ROWS, dtype=torch.int32)[:num_rows]
    assert torch.equal(gathered(table, ids, num_threads), table[ids.long()])


def test_callers_from_several_threads_take_turns() -> None:
    table = torch.randn(ROWS, WIDTH)

    def run(seed: int) -> bool:
        ids = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
        out = gathered(table, ids.int(), 3)
        return torch.equal(out, table[ids])

    with ThreadPoolExecutor(4) as callers:
        assert all(callers.map(run, range(200)))


def test_a_fork_has_threads_of_its_own() -> None:
    run_alone(FORK)
