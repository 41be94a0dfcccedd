"""Decode steps that are replayed: the same bits as eager ones, never stale, never silently off."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from hal.build import BuiltEngine, build_engine
from hal.config import EngineConfig
from hal.device import Feature
from hal.devices import host
from hal.engine.decode_graphs import DecodeGraphs, graph_sizes
from hal.engine.engine import Engine
from hal.engine.layers.tap import tap_layers
from hal.engine.model_runner import ModelRunner
from hal.engine.request import Output, Request
from hal.engine.scheduler import SchedulerConfig
from hal.engine.step_inputs import StepInputs
from hal.kernels.cpu import native
from hal.kernels.cpu.portable import LEVELS, Level
from hal.sampling_params import SamplingParams
from hal.select import OPS
from hal.tensor import Tensor

Maker = Callable[..., Path]
VOCAB_SIZE = 384
NUM_BLOCKS = 11  # too few for all requests at once

pytestmark = pytest.mark.skipif(
    native.unavailable() is not None, reason=f"no native kernels: {native.unavailable()}"
)


def build(folder: Path, **settings: object) -> BuiltEngine:
    base: dict[str, object] = {
        "model": str(folder),
        "device": "cpu",
        "dtype": "bfloat16",
        "max_num_seqs": 6,
        "max_model_len": 96,
        "cache": False,
    }
    return build_engine(EngineConfig(**{**base, **settings}))  # type: ignore[arg-type]  # EngineConfig checks


def stand_on(feature: Feature, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this CPU had no other instructions to multiply with."""
    old = replace(host.cpu_capabilities(), features=frozenset({Feature.GRAPHS, feature}))
    monkeypatch.setattr(host, "cpu_capabilities", lambda: old)


def request(name: str, prompt: tuple[int, ...], params: SamplingParams) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt, params=params)


def graphs_of(built: BuiltEngine) -> DecodeGraphs:
    graphs = built.runner.graphs
    assert graphs is not None, [c for c in built.resolved.choices if c.name == "graphs"]
    return graphs


def engine_with_few_blocks(built: BuiltEngine) -> Engine:
    config = SchedulerConfig(
        max_num_seqs=6,
        max_num_batched_tokens=64,
        max_model_len=96,
        block_size=16,
        num_blocks=NUM_BLOCKS,
        window=built.kv_group.spec.window,
        prefix_caching=True,
        chunked_prefill=True,
    )
    return Engine(config, built.runner, random.Random(0))


def traffic() -> Iterator[tuple[int, Request]]:
    """(step, request): prompts with common beginnings, all kinds of sampling, several choices."""
    rng = random.Random(5)
    common = tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(40))
    for number in range(18):
        prompt = common[: rng.choice((0, 16, 33, 40))]
        prompt += tuple(rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randrange(1, 12)))
        params = SamplingParams(
            temperature=rng.choice((0.0, 0.0, 0.9)),
            top_p=rng.choice((1.0, 0.8)),
            seed=number,
            max_tokens=rng.randrange(1, 30),
            n=rng.choice((1, 1, 2)),
            logprobs=rng.choice((None, 3)),
            repetition_penalty=rng.choice((1.0, 1.0, 1.2)),
            ignore_eos=True,
        )
        yield rng.randrange(20), request(f"r{number}", prompt, params)


def run_all(engine: Engine) -> list[list[Output]]:
    arrivals: dict[int, list[Request]] = {}
    for step, arrived in traffic():
        arrivals.setdefault(step, []).append(arrived)
    outputs = []
    for step in range(2000):
        for arrived in arrivals.pop(step, ()):
            engine.add(arrived)
        outputs.append(engine.step())
        engine.scheduler.blocks.check()
        if not arrivals and not engine.has_work:
            return outputs
    raise AssertionError("never ends")


def built_with_window(built: BuiltEngine) -> bool:
    """Then blocks are given up early, and are never short here."""
    return built.kv_group.spec.window is not None


@pytest.mark.parametrize("arch", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_replays_are_eager_steps_to_the_bit(
    tiny_checkpoint: Maker, arch: str, quantization: str
) -> None:
    """Through preemptions, prefix hits, joins and leaves; log probabilities show the logits."""
    folder = tiny_checkpoint(arch)
    replayed = build(folder, quantization=quantization)
    eager = build(folder, quantization=quantization, enforce_eager=True)
    engine = engine_with_few_blocks(replayed)
    outputs = run_all(engine)
    assert outputs == run_all(engine_with_few_blocks(eager))
    stats = engine.stats()
    assert stats.num_prefix_hits > 0
    assert stats.num_preemptions > 0 or built_with_window(replayed)
    assert graphs_of(replayed).num_graphs > 3
    assert eager.runner.graphs is None


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
@pytest.mark.parametrize("level", [level for level in LEVELS if level.unavailable() is None])
def test_replays_of_portable_kernels_are_eager_steps_to_the_bit(
    tiny_checkpoint: Maker, level: Level, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_on(level.feature, monkeypatch)
    folder = tiny_checkpoint(arch)
    replayed, eager = build(folder), build(folder, enforce_eager=True)
    kernels = {s.op: s.kernel.name for s in replayed.selections}
    assert {kernels["linear"], kernels["attention"], kernels["rms_norm"]} == {level.name}
    outputs = run_all(engine_with_few_blocks(replayed))
    assert outputs == run_all(engine_with_few_blocks(eager))
    assert graphs_of(replayed).num_graphs > 3


def test_a_captured_step_launches_nothing_from_python(
    tiny_checkpoint: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(tiny_checkpoint("llama"))
    engine = engine_with_few_blocks(built)
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    engine.add(request("r", (5, 6, 7), params))
    engine.step()
    ran: list[int] = []
    monkeypatch.setattr(ModelRunner, "_run", lambda *_: ran.append(1))
    tokens = [output.token_ids[0] for _ in range(9) for output in engine.step()]
    assert len(tokens) == 9
    assert ran == []


def test_a_step_that_decodes_and_prefills_is_eager(
    tiny_checkpoint: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(tiny_checkpoint("llama"))
    engine = engine_with_few_blocks(built)
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    engine.add(request("a", (5, 6, 7), params))
    engine.step()
    shapes: list[int] = []
    run = ModelRunner._run

    def watched(self: ModelRunner, inputs: StepInputs) -> None:
        shapes.append(inputs.num_tokens)
        run(self, inputs)

    monkeypatch.setattr(ModelRunner, "_run", watched)
    engine.add(request("b", (8, 9), params))
    engine.step()
    assert shapes == [3]


def test_the_number_of_threads_may_change_between_replays(
    tiny_checkpoint: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint("llama")
    expected = run_all(engine_with_few_blocks(build(folder, enforce_eager=True)))
    built = build(folder)
    num_threads = iter([1, 2, 3] * 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: next(num_threads))
    assert run_all(engine_with_few_blocks(built)) == expected


def test_replaced_layers_run_in_python_from_then_on(tiny_checkpoint: Maker) -> None:
    folder = tiny_checkpoint("llama")
    expected = run_all(engine_with_few_blocks(build(folder)))
    built = build(folder)
    engine = engine_with_few_blocks(built)
    engine.add(request("first", (5, 6), SamplingParams(max_tokens=4, ignore_eos=True)))
    while engine.has_work:
        engine.step()
    seen: list[str] = []

    def observe(name: str, out: Tensor) -> None:
        seen.append(name)

    built.decoder.replace_layers(partial(tap_layers, observe=observe))
    engine = engine_with_few_blocks(built)
    outputs = run_all(engine)
    assert outputs == expected
    assert len(seen) == 8 * engine.stats().num_steps  # four sites in each of two layers


def test_weights_that_change_in_place_are_the_next_replays(tiny_checkpoint: Maker) -> None:
    folder = tiny_checkpoint("llama")
    replayed, eager = build(folder), build(folder, enforce_eager=True)
    engines = [engine_with_few_blocks(built) for built in (replayed, eager)]
    assert run_all(engines[0]) == run_all(engines[1])
    for built in (replayed, eager):
        weight = built.decoder._parts.final_norm._weight.tensor  # type: ignore[attr-defined]  # of any family
        weight.mul_(torch.linspace(-1, 1, len(weight)))
    changed = [run_all(engine_with_few_blocks(built)) for built in (replayed, eager)]
    assert changed[0] == changed[1]


def test_a_kernel_that_cannot_be_captured_turns_graphs_off_by_name(tiny_checkpoint: Maker) -> None:
    built = build(tiny_checkpoint("llama"), kernel=("rms_norm=torch",))
    assert built.runner.graphs is None
    (choice,) = (c for c in built.resolved.choices if c.name == "graphs")
    assert (choice.value, choice.reason.partition(" on ")[0]) == (
        "off",
        "rms_norm runs torch, which cannot be captured",
    )
    assert built.plan.graphs_bytes == 0


def test_a_kernel_that_claims_too_much_is_found_out_and_said(
    tiny_checkpoint: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its claim lets through, the capture itself refuses; steps then run eagerly."""
    folder = tiny_checkpoint("llama")
    expected = build(folder, kernel=("rms_norm=torch",))
    monkeypatch.setitem(OPS["rms_norm"].kernels, "torch", _claiming("rms_norm", "torch"))
    built = build(folder, kernel=("rms_norm=torch",))
    graphs = graphs_of(built)
    assert graphs.num_graphs == 0
    assert graphs.refusal is not None and "aten" in graphs.refusal
    (shown,) = (c for c in built.choices if c.name == "graphs")
    assert (shown.value, shown.reason) == ("off", graphs.refusal)
    outputs = run_all(engine_with_few_blocks(built))
    assert outputs == run_all(engine_with_few_blocks(expected))


def _claiming(op: str, name: str) -> object:
    kernel = OPS[op].kernels[name]
    return replace(kernel, traits=replace(kernel.traits, capturable=True))


@pytest.mark.parametrize("arch", ["llama", "mixtral"])
@pytest.mark.parametrize("is_old", [False, True])
def test_planned_bytes_hold_every_size(
    tiny_checkpoint: Maker, monkeypatch: pytest.MonkeyPatch, arch: str, is_old: bool
) -> None:
    if is_old:
        stand_on(Feature.AVX2, monkeypatch)
    module, recordings = native.load(), []
    make = module.Recording

    def made() -> object:
        recordings.append(make())
        return recordings[-1]

    monkeypatch.setattr(module, "Recording", made)
    built = build(tiny_checkpoint(arch))
    run_all(engine_with_few_blocks(built))
    assert len(recordings) == 6
    used = sum(recording.num_bytes for recording in recordings)
    assert 0.2 * built.plan.graphs_bytes < used < built.plan.graphs_bytes


def test_sizes_are_exact_on_a_host_and_powers_of_two_elsewhere(
    tiny_checkpoint: Maker,
) -> None:
    host = build(tiny_checkpoint("llama")).device.capabilities
    card = replace(host, is_accelerator=True)
    assert graph_sizes(host, 5) == (1, 2, 3, 4, 5)
    assert graph_sizes(host, 500)[-1] == 32
    assert graph_sizes(card, 1) == (1,)
    assert graph_sizes(card, 8) == (1, 2, 4, 8)
    assert graph_sizes(card, 100) == (1, 2, 4, 8, 16, 32, 64, 100)
