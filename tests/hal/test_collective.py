"""The collective of one rank, and that layers really go through it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoints import make_checkpoint

from hal.build import build_engine
from hal.collective import SingleRank
from hal.config import EngineConfig
from hal.engine.request import Request
from hal.sampling_params import SamplingParams


def test_one_rank_is_the_identity() -> None:
    group = SingleRank()
    x = torch.tensor([1.0, 2.0])
    group.all_reduce(x)
    group.broadcast(x)
    assert (group.rank, group.size) == (0, 1)
    group.all_gather(x, x)
    assert x.tolist() == [1.0, 2.0]
    with pytest.raises(AssertionError):
        group.broadcast(x, root=1)


def test_every_layer_reduces_its_two_partial_sums(
    tmp_path: Path, device_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reduced: list[tuple[int, ...]] = []
    monkeypatch.setattr(SingleRank, "all_reduce", lambda self, x: reduced.append(tuple(x.shape)))
    folder = make_checkpoint(tmp_path / "model", "llama")
    built = build_engine(EngineConfig(model=str(folder), device=device_name, max_num_seqs=2))
    reduced.clear()  # of what was captured at start
    params = SamplingParams(max_tokens=1, temperature=0.0)
    built.engine.add(Request(request_id="0", prompt_token_ids=(5, 6, 7), params=params))
    built.engine.step()
    assert reduced == [(3, 64)] * (2 * built.model.num_layers)
