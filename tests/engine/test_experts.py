"""Checkpoints with experts: both layouts are the same weights, and what is wrong is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.engine.request import Request
from hal.errors import WeightsError
from hal.sampling_params import SamplingParams

Maker = Callable[..., Path]
Tensors = dict[str, torch.Tensor]


def build(folder: Path, device: str) -> BuiltEngine:
    return build_engine(
        EngineConfig(
            model=str(folder), device=device, dtype="float32", max_num_seqs=2, max_model_len=64
        )
    )


def greedy(built: BuiltEngine) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    built.engine.add(Request(request_id="0", prompt_token_ids=tuple(range(5, 40)), params=params))
    tokens: list[int] = []
    while built.engine.has_work:
        tokens += [token for output in built.engine.step() for token in output.token_ids]
    return tokens


def changed(folder: Path, to: Path, change: Callable[[Tensors], None]) -> Path:
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe"])
def test_both_layouts_are_the_same_model(
    tiny_checkpoint: Maker, device_name: str, arch: str
) -> None:
    answers = [
        greedy(build(tiny_checkpoint(arch, original_format=original), device_name))
        for original in (True, False)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 12


def test_a_missing_expert_is_named(
    tiny_checkpoint: Maker, device_name: str, tmp_path: Path
) -> None:
    name = "model.layers.1.block_sparse_moe.experts.3.w3.weight"
    folder = changed(
        tiny_checkpoint("mixtral"), tmp_path / "m", lambda tensors: tensors.__delitem__(name)
    )
    with pytest.raises(WeightsError, match=f"1 tensor missing: {name}"):
        build(folder, device_name)


def test_experts_of_another_number_are_named(
    tiny_checkpoint: Maker, device_name: str, tmp_path: Path
) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    source = tiny_checkpoint("mixtral", original_format=False)

    def shrink(tensors: Tensors) -> None:
        tensors[name] = tensors[name][:5].clone()

    with pytest.raises(WeightsError, match=rf"{name} is \[5, 256, 64\], expected \[6, 256, 64\]"):
        build(changed(source, tmp_path / "m", shrink), device_name)


def test_a_layer_without_any_expert_is_reported_in_the_usual_names(
    tiny_checkpoint: Maker, device_name: str, tmp_path: Path
) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [name for name in tensors if "layers.1.mlp" in name]:
            del tensors[name]

    folder = changed(tiny_checkpoint("qwen3_moe"), tmp_path / "m", drop)
    with pytest.raises(WeightsError, match=r"25 tensors missing: .*experts\.0\.gate_proj\.weight"):
        build(folder, device_name)
