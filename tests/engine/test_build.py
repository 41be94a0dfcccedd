"""From a folder to a running engine: the plan is what is allocated, choices carry reasons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from hal.assembly import assemble, make_selector
from hal.build import BuiltEngine, build_engine, place_threads
from hal.collective import SingleRank
from hal.config import EngineConfig, ModelLimits, resolve
from hal.device import Device
from hal.engine.model_config import read_model_config
from hal.engine.models import MODELS
from hal.engine.request import FinishReason, Request
from hal.errors import ConfigError, MemoryPlanError, UnsupportedError, WeightsError
from hal.profiles import find_profile
from hal.sampling_params import SamplingParams
from hal.select import SelectionPolicy

Maker = Callable[..., Path]


def build(folder: Path, device: str, **settings: object) -> BuiltEngine:
    base: dict[str, object] = {"max_num_seqs": 4, "max_model_len": 128}
    return build_engine(EngineConfig(model=str(folder), device=device, **{**base, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "mixtral", "qwen3_moe"])
def test_planned_bytes_are_allocated_bytes(
    tiny_checkpoint: Maker, device_name: str, arch: str
) -> None:
    built = build(tiny_checkpoint(arch), device_name)
    plan = built.plan
    planned = plan.weights_bytes + plan.activation_bytes + plan.logits_bytes + plan.kv_bytes
    assert built.device.allocated_bytes() == pytest.approx(planned, rel=0.01)


def test_the_choice_of_cpus_is_among_the_choices(tiny_checkpoint: Maker, device_name: str) -> None:
    built = build(tiny_checkpoint("llama"), device_name, cpu_affinity="none")
    (choice,) = (c for c in built.resolved.choices if c.name == "cpu_affinity")
    assert (choice.value, "set by the user" in choice.reason) == ("none", True)


def test_a_list_of_cpus_is_refused_where_kernels_run_on_none() -> None:
    caps = find_profile("h100").capabilities()
    device = cast("Device", SimpleNamespace(capabilities=caps))
    with pytest.raises(UnsupportedError, match="whose kernels run on no CPU"):
        place_threads(EngineConfig(cpu_affinity="0"), device)


def test_weights_of_the_plan_are_the_checkpoints(tiny_checkpoint: Maker, device_name: str) -> None:
    folder = tiny_checkpoint("llama")
    built = build(folder, device_name, dtype="float32")
    on_disk = (folder / "model.safetensors").stat().st_size
    rotary_table = 128 * 16 * 4
    assert built.plan.weights_bytes - rotary_table == pytest.approx(on_disk, rel=0.01)


def test_kv_bytes_count_kv_heads(tiny_checkpoint: Maker, device_name: str) -> None:
    grouped = build(tiny_checkpoint("llama"), device_name, dtype="float32")
    full = build(tiny_checkpoint("llama", num_key_value_heads=4), device_name, dtype="float32")
    # layers x (key + value) x kv heads x head_dim x float32
    assert grouped.plan.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert full.plan.kv_bytes_per_token == 2 * grouped.plan.kv_bytes_per_token


def test_a_tiny_model_does_not_take_the_machine(tiny_checkpoint: Maker, device_name: str) -> None:
    built = build(tiny_checkpoint("llama"), device_name)
    tokens = 4 * 128
    assert built.plan.kv_tokens == tokens + built.plan.block_size  # and the null block


def test_memory_that_cannot_hold_one_sequence_computes_the_remedy(
    tiny_checkpoint: Maker, device_name: str
) -> None:
    folder = tiny_checkpoint("llama")
    plan = build(folder, device_name).plan
    fixed = plan.weights_bytes + plan.activation_bytes + plan.logits_bytes + plan.graphs_bytes
    fixed += plan.bookkeeping_bytes
    with pytest.raises(MemoryPlanError, match="Lower --max-model-len to 32 or raise --memory"):
        build(folder, device_name, memory=f"{fixed + 3 * 16 * 512}B")


def test_pool_too_small_for_a_request_refuses_it_and_serves_the_rest(
    tiny_checkpoint: Maker, device_name: str
) -> None:
    built = build(tiny_checkpoint("llama"), device_name)
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    built.engine.add(Request(request_id="ok", prompt_token_ids=(5, 6), params=params))
    outputs = []
    while built.engine.has_work:
        outputs += built.engine.step()
    assert outputs[-1].finish_reason is FinishReason.LENGTH


def test_sites_explain_every_rejected_kernel(tiny_checkpoint: Maker, device_name: str) -> None:
    built = build(tiny_checkpoint("llama"), device_name)
    ops = {selection.op for selection in built.selections}
    assert {"attention_block", "mlp_block", "linear", "attention", "vocab", "sample"} <= ops
    assert all(r.reason for selection in built.selections for r in selection.rejected)
    forced = build(tiny_checkpoint("llama"), device_name, kernel=("linear=reference",))
    linear = next(s for s in forced.selections if s.op == "linear")
    assert linear.kernel.name == "reference"
    assert all("--kernel linear=reference" in r.reason or r.reason for r in linear.rejected)


def test_block_size_that_no_kernel_takes_is_refused_with_the_legal_ones(
    tiny_checkpoint: Maker, device_name: str
) -> None:
    with pytest.raises(ConfigError, match="--block-size 7 cannot run here.*16"):
        build(tiny_checkpoint("llama"), device_name, block_size=7)


def test_threads_are_used(tiny_checkpoint: Maker, device_name: str) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        build(tiny_checkpoint("llama"), device_name, threads=2)
        assert torch.get_num_threads() == 2
        build(tiny_checkpoint("llama"), device_name, threads=1)
        assert torch.get_num_threads() == 1
        build(tiny_checkpoint("llama"), device_name)
        assert torch.get_num_threads() == 1, "not given: left alone"
    finally:
        torch.set_num_threads(before)


def test_dtype_auto_says_why(tiny_checkpoint: Maker, device_name: str) -> None:
    built = build(tiny_checkpoint("llama"), device_name)
    choice = next(c for c in built.resolved.choices if c.name == "dtype")
    assert choice.value == "float32" and choice.reason == "as stored in the checkpoint"


def test_weights_beyond_float16_are_refused(
    tiny_checkpoint: Maker, device_name: str, tmp_path: Path
) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "big"
    shutil.copytree(tiny_checkpoint("llama"), folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 1e6)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="beyond float16"):
        build(folder, device_name, dtype="float16")


@pytest.mark.parametrize("arch", ["mistral", "qwen2", "llama"])
def test_deterministic_has_kernels_for_untied_embeddings(tiny_checkpoint: Maker, arch: str) -> None:
    """A table that is only looked up sums nothing, so its kernel may be any."""
    folder = tiny_checkpoint(arch, tie_word_embeddings=False)
    cpu = find_profile("avx512-bf16").capabilities()
    selector = make_selector(cpu, SelectionPolicy(deterministic=True), is_present=False)
    model = read_model_config(folder, MODELS.keys())
    limits = ModelLimits(dtype=model.dtype, max_position_embeddings=256)
    resolved = resolve(EngineConfig(model=str(folder), dtype="bfloat16"), cpu, limits)
    assemble(model, resolved, selector, SingleRank(), None)
    lookups = [s for s in selector.report() if s.op == "vocab" and not s.problem.makes_logits]
    assert lookups
