"""The plan against engines that really start: what was predicted is what they allocate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_checkpoints import ARCHITECTURES

import hal
from hal import opset
from hal.assembly import assemble, make_selector, selection_policy
from hal.binding import Arena, Binder
from hal.build import build_engine
from hal.collective import SingleRank
from hal.config import EngineConfig, ResolvedConfig
from hal.engine.request import FinishReason, Request
from hal.planning.model import PlannedModel, read_planned_model
from hal.planning.settings import PlanSettings
from hal.planning.sizing import Basis, Sizer, size_from_config
from hal.planning.target import PlanDevice, find_device
from hal.sampling_params import SamplingParams

Maker = Callable[..., Path]

# (max_num_seqs, max_model_len, dtype)
STARTS = [(4, 128, "auto"), (1, 32, "float32"), (17, 256, "bfloat16"), (64, None, "float32")]
WINDOWED = {"mistral": {"sliding_window": 32}}


def start_and_plan(
    folder: str,
    slots: int,
    length: int | None,
    dtype: str,
    step: int | None,
    quantization: str = "none",
    kv: str = "auto",
    ranks: int = 1,
) -> None:
    """Both with the same settings; every part must agree."""
    built = build_engine(
        EngineConfig(
            model=folder,
            device="cpu",
            dtype=dtype,
            max_num_seqs=slots,
            max_model_len=length,
            max_num_batched_tokens=step,
            quantization=quantization,
            kv_cache_dtype=kv,
            tensor_parallel_size=ranks,
        )
    )
    built.close()
    report = hal.plan(
        folder,
        device="cpu",
        dtype=dtype,
        max_num_seqs=slots,
        ctx=length,
        max_num_batched_tokens=step,
        quantization=quantization,
        kv=kv,
        tp=ranks,
    )
    plan, predicted = built.plan, report.memory
    assert report.basis is Basis.ENGINE and predicted is not None
    assert predicted.weights_bytes == pytest.approx(plan.weights_bytes, rel=0.01)
    assert predicted.kv_bytes == pytest.approx(plan.kv_bytes, rel=0.01)
    assert predicted.activation_bytes == pytest.approx(plan.activation_bytes, rel=0.10)
    assert predicted.logits_bytes == pytest.approx(plan.logits_bytes, rel=0.10)
    assert predicted.graphs_bytes == pytest.approx(plan.graphs_bytes, rel=0.01)
    assert predicted.num_blocks == plan.num_blocks
    assert predicted.communicator_bytes == plan.communicator_bytes
    parts = ("weights", "KV cache", "activations", "logits", "graphs", "communicator")
    total = sum(part.num_bytes for part in report.parts() if part.name in parts)
    total -= predicted.communicator_bytes  # memory of the system's, not of the device
    # A recording keeps its launches beside the device's tensors, which are their inputs.
    inputs = built.runner.decode_shape.num_bytes if built.runner.graphs else 0
    launches = plan.graphs_bytes - inputs
    assert built.device.allocated_bytes() + launches == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("slots", "length", "dtype"), STARTS)
def test_a_started_engine_allocates_what_was_planned(
    tiny_checkpoint: Maker, arch: str, slots: int, length: int | None, dtype: str
) -> None:
    start_and_plan(str(tiny_checkpoint(arch)), slots, length, dtype, None)


@pytest.mark.parametrize(("slots", "length", "dtype"), [(8, 1024, "auto"), (64, 512, "float32")])
def test_the_embedded_model_allocates_what_was_planned(slots: int, length: int, dtype: str) -> None:
    start_and_plan("hal-tiny", slots, length, dtype, None)


def test_a_rank_allocates_what_was_planned() -> None:
    start_and_plan("hal-tiny", 8, 256, "float32", None, ranks=2)
    report = hal.plan("hal-tiny", device="cpu", tp=2)
    assert report.parallel.legal == (1, 2, 4)
    assert not any("not supported yet" in note for note in report.notes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_of_codes_is_planned_as_it_is_allocated(tiny_checkpoint: Maker, dtype: str) -> None:
    folder = str(tiny_checkpoint("llama"))
    start_and_plan(folder, 4, 128, dtype, None, kv="int8")
    sizes = {kv: hal.plan(folder, device="cpu", dtype=dtype, kv=kv) for kv in ("auto", "int8")}
    per_block = {kv: report.inputs.kv_bytes_per_block for kv, report in sizes.items()}
    element_bytes = 2 if dtype == "bfloat16" else 4
    assert per_block["int8"] * 16 * element_bytes == per_block["auto"] * (16 + 2)
    assert not any("not supported yet" in note for note in sizes["int8"].notes)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_quantised_weights_are_planned_as_they_are_packed(
    tiny_checkpoint: Maker, arch: str, quantization: str
) -> None:
    folder = str(tiny_checkpoint(arch))
    start_and_plan(folder, 4, 128, "bfloat16", None, quantization)
    report = hal.plan(folder, device="cpu", quantization=quantization)
    assert not any("not supported yet" in note for note in report.notes)


def test_behind_a_window_only_the_window_and_a_step_are_kept(tiny_checkpoint: Maker) -> None:
    folder = str(tiny_checkpoint("mistral", sliding_window=32))
    start_and_plan(folder, 4, 256, "float32", 64)
    windowed = hal.plan(folder, device="cpu", ctx=256, max_num_seqs=4, max_num_batched_tokens=64)
    whole = hal.plan(str(tiny_checkpoint("mistral")), device="cpu", ctx=256, max_num_seqs=4)
    assert windowed.memory and whole.memory
    # (32 - 1 + 64) / 16 rounded up, and the block that both cut; 16 blocks without a window
    assert windowed.memory.blocks_per_seq == 7
    assert whole.memory.blocks_per_seq == 16


def test_a_pool_of_windows_serves_as_many_long_sequences_as_planned(
    tiny_checkpoint: Maker,
) -> None:
    built = build_engine(
        EngineConfig(
            model=str(tiny_checkpoint("mistral", sliding_window=32)),
            device="cpu",
            max_num_seqs=3,
            max_model_len=256,
            max_num_batched_tokens=64,
            prefix_caching=False,
        )
    )
    assert built.plan.num_blocks == 3 * 7 + 1
    params = SamplingParams(max_tokens=56, temperature=0.0, ignore_eos=True)
    for name in "abc":
        prompt = tuple(range(3, 203))
        built.engine.add(Request(request_id=name, prompt_token_ids=prompt, params=params))
    finished = []
    while built.engine.has_work:
        finished += [out for out in built.engine.step() if out.finish_reason is not None]
    assert [out.finish_reason for out in finished] == [FinishReason.LENGTH] * 3
    assert built.engine.stats().num_preemptions == 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("slots", "length", "dtype"), STARTS)
def test_shapes_from_config_weigh_what_the_assembled_model_weighs(
    tiny_checkpoint: Maker, arch: str, slots: int, length: int | None, dtype: str
) -> None:
    model = read_planned_model(str(tiny_checkpoint(arch, **WINDOWED.get(arch, {}))))
    settings = PlanSettings(model="", dtype=dtype, ctx=length, max_num_seqs=slots, tp=1)
    for name in ("cpu", "h100", "mi300x", "avx512-bf16"):
        device = find_device(name)
        engine = Sizer(model).size(settings, device)
        config = size_from_config(model, settings, device, engine.resolved)
        assert engine.basis is Basis.ENGINE and config.basis is Basis.CONFIG
        assert config.inputs.weights_bytes == pytest.approx(engine.inputs.weights_bytes, rel=0.01)
        assert config.inputs.kv_bytes_per_block == engine.inputs.kv_bytes_per_block
        assert config.inputs.sequence_blocks == engine.inputs.sequence_blocks
        assert config.inputs.logits_bytes == engine.inputs.logits_bytes


def attention_workspace(model: PlannedModel, device: PlanDevice, resolved: ResolvedConfig) -> int:
    """What the chosen attention kernel keeps beside the buffers that all kernels share."""
    assert model.engine is not None
    policy = selection_policy(resolved.config)
    selector = make_selector(device.capabilities, policy, is_present=device.is_present)
    one_layer = assemble(model.engine.of_layers([0]), resolved, selector, SingleRank(), None)
    arena = Arena(resolved.max_num_batched_tokens)
    problem = one_layer.decoder.attention_families[0].problem
    Binder(selector, arena, None).bind(opset.attention, problem)
    return arena.num_bytes


@pytest.mark.parametrize(
    "name", ["llama-2-7b", "llama-3-70b", "mistral-7b", "qwen2-7b", "mixtral-8x7b", "qwen3-30b-a3b"]
)
@pytest.mark.parametrize("device", ["h100", "mi300x", "avx2", "amx"])
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_published_models_weigh_the_same_on_both_bases(
    published: Callable[..., str], name: str, device: str, quantization: str
) -> None:
    model = read_planned_model(published(name))
    target = find_device(device)
    settings = PlanSettings(model="", tp=1, quantization=quantization)
    engine = Sizer(model).size(settings, target)
    assert model.engine is not None
    assert model.engine.max_position_embeddings == model.shape.max_position_embeddings
    config = size_from_config(model, settings, target, engine.resolved)
    assert config.inputs.weights_bytes == pytest.approx(engine.inputs.weights_bytes, rel=0.001)
    assert config.inputs.kv_bytes_per_block == engine.inputs.kv_bytes_per_block
    assert config.inputs.sequence_blocks == engine.inputs.sequence_blocks
    if quantization != "none":
        return  # kernels keep the codes of activations as well
    counted = config.inputs.activation_bytes + attention_workspace(model, target, engine.resolved)
    activations = (counted, engine.inputs.activation_bytes)
    if target.capabilities.is_accelerator:
        assert activations[0] == pytest.approx(activations[1], rel=0.01)
    assert activations[0] >= 0.99 * activations[1], "fused kernels keep fewer buffers, not more"


@pytest.mark.parametrize(
    "name", ["llama-3-8b", "mistral-7b", "qwen3-8b", "gpt2-xl", "mixtral-8x7b"]
)
def test_one_layer_stands_for_all(published: Callable[..., str], name: str) -> None:
    sizer = Sizer(read_planned_model(published(name)))
    for ctx, count in ((64, 1), (700, 3), (1024, 100)):
        settings = PlanSettings(model="", ctx=ctx, concurrency=count, tp=1)
        device = find_device("h100")
        quick, exact = (sizer.size(settings, device, is_exact=e).inputs for e in (False, True))
        assert quick == exact


def test_one_layer_of_each_kind_stands_for_all(published: Callable[..., str]) -> None:
    layers = {"num_hidden_layers": 7, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    sizer = Sizer(read_planned_model(published("qwen3-30b-a3b", num_experts=16, **layers)))
    settings, device = PlanSettings(model="", ctx=700, concurrency=3, tp=1), find_device("avx2")
    quick, exact = (sizer.size(settings, device, is_exact=e).inputs for e in (False, True))
    assert quick == exact
    assert quick.weights_bytes == pytest.approx(4 * sizer.model.shape.num_parameters, rel=0.01)


def test_a_planted_error_in_the_shapes_would_be_seen(tiny_checkpoint: Maker) -> None:
    model = read_planned_model(str(tiny_checkpoint("llama")))
    settings, device = PlanSettings(model="", tp=1), find_device("cpu")
    engine = Sizer(model).size(settings, device)
    (kv,) = model.shape.kv
    wrong = replace(model.shape, weights=model.shape.weights[1:], kv=(replace(kv, count=3),))
    config = size_from_config(replace(model, shape=wrong), settings, device, engine.resolved)
    assert config.inputs.weights_bytes != pytest.approx(engine.inputs.weights_bytes, rel=0.01)
    assert config.inputs.kv_bytes_per_block != engine.inputs.kv_bytes_per_block
