"""What several ranks must not be asked for, and what a config means for one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import make_checkpoint

from hal import LLM
from hal.config import EngineConfig
from hal.device import Memory, MemoryKind
from hal.errors import ConfigError, HalError, UnsupportedError
from hal.memory import PlanInputs, parse_memory
from hal.ranks.connect import GLOO, SHARED_MEMORY, arrange

Maker = Callable[[], str]


@pytest.mark.parametrize(
    ("settings", "error", "reason"),
    [
        ({"quantization": "int8"}, UnsupportedError, "with quantization='int8'"),
        ({"device": "null:h100"}, UnsupportedError, "ranks are processes on one CPU machine"),
        ({"cpu_affinity": "0"}, UnsupportedError, "with cpu_affinity='0'"),
        ({"swap_space": 1}, UnsupportedError, "with swap_space=1"),
        ({"tensor_parallel_size": 8}, ConfigError, r"does not divide .* Legal sizes: 1, 2, 4"),
        ({"tensor_parallel_size": 128}, ConfigError, "at most 64 ranks are possible"),
        ({"tensor_parallel_size": 0}, ConfigError, "at least 1"),
        ({"collective": "mpi"}, ConfigError, "one of auto, shared-memory, gloo; got 'mpi'"),
    ],
)
def test_refused_before_anything_is_started(
    settings: dict[str, Any], error: type[HalError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        LLM("hal-tiny", show_progress=False, **{"tensor_parallel_size": 2, **settings})


def test_experts_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "mixtral")
    with pytest.raises(UnsupportedError, match="of mixtral: experts are not cut yet"):
        LLM(str(folder), tensor_parallel_size=2, show_progress=False)


def test_the_collective_is_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hal.ranks.connect.ranks_unavailable", lambda: "not built (planted)")
    meeting = arrange("auto", 2)
    assert (meeting.collective, meeting.descriptors) == (GLOO, ())
    assert meeting.reason == "shared memory cannot be used: not built (planted)"
    meeting.close()
    with pytest.raises(UnsupportedError, match="not built .planted.. Use --collective gloo"):
        arrange(SHARED_MEMORY, 2)


@pytest.mark.parametrize(("wanted", "given"), [("0.5", 0.5), ("8GiB", 4 << 30)])
def test_ranks_share_the_memory_of_the_machine(wanted: str, given: float) -> None:
    inputs = PlanInputs(
        memory=Memory(kind=MemoryKind.HOST, total_bytes=64 << 30, available_bytes=32 << 30),
        request=parse_memory(wanted),
        weights_bytes=1,
        activation_bytes=1,
        logits_bytes=1,
        kv_bytes_per_block=1,
        block_size=16,
        max_model_len=16,
        max_num_seqs=1,
    )
    rank = inputs.of_rank(2, communicator_bytes=7)
    assert (rank.memory.total_bytes, rank.memory.available_bytes) == (32 << 30, 16 << 30)
    assert (rank.request.amount, rank.communicator_bytes) == (given, 7)


def test_threads_are_divided() -> None:
    from hal.build import resolve_for
    from hal.ranks.settings import of_rank

    found = resolve_for(EngineConfig(device="cpu", tensor_parallel_size=4))
    config = found.config
    shares = [of_rank(config, found.folder, found.opened, n).threads for n in (2, 4, 9)]
    assert shares == [1, 1, 2]
