"""Sums and columns of ranks that share memory: right, the same bits everywhere, never for ever."""

from __future__ import annotations

import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from rank_threads import run_ranks

from hal.collective import Collective
from hal.devices import open_device
from hal.devices.gloo import GlooCollective
from hal.errors import RANK_LOST, EngineError
from hal.kernels.cpu.collective import SharedMemoryCollective
from hal.ranks.connect import self_test
from hal.share import Share
from hal.tensor import Tensor

SLOT = (256 << 10) // 4  # float32 in one exchange


def part(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 257, SLOT, SLOT + 1, 5 * SLOT + 77])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_reduce_is_the_sum_in_the_order_of_ranks(
    dtype: torch.dtype, count: int, size: int
) -> None:
    def rank(group: Collective) -> list[torch.Tensor]:
        """Twice as many exchanges as there are slots: none may be read or written too early."""
        made = [part(group.rank + 10 * turn, (count,), dtype) for turn in range(4)]
        for x in made:
            group.all_reduce(x)
        group.check()
        return made

    results = run_ranks(size, rank)
    for turn in range(4):
        total = torch.zeros(count)
        for number in range(size):
            total += part(number + 10 * turn, (count,), dtype).float()
        for made in results:
            assert torch.equal(made[turn], total.to(dtype))


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (3, 151), (2, 3 * SLOT + 2), (70_000, 7)])
@pytest.mark.parametrize("size", [2, 4])
def test_all_gather_puts_uneven_columns_beside_each_other(
    size: int, rows: int, columns: int
) -> None:
    whole = part(0, (rows, columns), torch.float32)

    def rank(group: Collective) -> torch.Tensor:
        own = Share(group.rank, size).of(columns)
        out = torch.full_like(whole, -1.0)
        group.all_gather(whole[:, own.start : own.stop].contiguous(), out)
        return out

    for out in run_ranks(size, rank):
        assert torch.equal(out, whole)


def test_broadcast_is_the_roots() -> None:
    def rank(group: Collective) -> torch.Tensor:
        x = part(group.rank, (3 * SLOT,), torch.float32)
        group.broadcast(x, root=1)
        return x

    for x in run_ranks(3, rank):
        assert torch.equal(x, part(1, (3 * SLOT,), torch.float32))


def test_a_rank_that_does_not_come_fails_the_group_by_name() -> None:
    said: list[str] = []

    def rank(group: Collective) -> None:
        group.limit_waits(0.05)
        if group.rank == 0:
            group.all_reduce(torch.ones(4))
            with pytest.raises(EngineError) as late:
                group.check()
            assert late.value.code == RANK_LOST
            said.append(late.value.message)

    run_ranks(2, rank)
    assert said == ["rank 0 of 2: rank 1 did not arrive within 0.05 s"]


def test_an_abort_wakes_who_waits() -> None:
    is_waiting = threading.Event()

    def rank(group: Collective) -> str:
        if group.rank == 1:
            is_waiting.wait()
            group.abort()
        else:
            is_waiting.set()
            group.all_reduce(torch.ones(4))
        with pytest.raises(EngineError) as left:
            group.check()
        group.all_reduce(torch.ones(4))  # returns at once from now on
        return left.value.message

    assert run_ranks(2, rank)[0] == "rank 0 of 2: a rank has left the group"


def test_the_self_test_passes_and_finds_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    run_ranks(3, lambda group: self_test(group, open_device("cpu").device))

    def forgets_one(self: SharedMemoryCollective, x: Tensor) -> None:
        assert isinstance(x, torch.Tensor)
        x[-1] += 1

    monkeypatch.setattr(SharedMemoryCollective, "all_reduce", forgets_one)
    with pytest.raises(EngineError, match=r"self-test of shared-memory, rank \d of 2: all_reduce"):
        run_ranks(2, lambda group: self_test(group, open_device("cpu").device))


def test_gloo_keeps_the_same_contract() -> None:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(3) as pool:
        meeting = str(Path(folder) / "meeting")

        def rank(number: int) -> list[torch.Tensor]:
            group = GlooCollective(Share(number, 3), meeting, 60.0)
            self_test(group, open_device("cpu").device)
            x = part(number, (99,), torch.bfloat16)
            group.all_reduce(x)
            group.broadcast(y := part(number, (5,), torch.float32), root=2)
            return [x, y]

        results = list(pool.map(rank, range(3)))
    total = sum(part(number, (99,), torch.bfloat16).double() for number in range(3))
    for x, y in results:
        np.testing.assert_allclose(x.double(), total, atol=2**-6)
        assert torch.equal(x, results[0][0])
        assert torch.equal(y, part(2, (5,), torch.float32))
