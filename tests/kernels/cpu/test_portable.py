"""The families of every portable level: the same layouts and codes as the others, one answer each.

What they compute is checked in C++ too (tests/kernels/native), also where this CPU cannot run it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch

import hal
import hal.kernels
from hal.conformance.cases import cases_by_op
from hal.conformance.paged import PagedCache, SequenceStep
from hal.conformance.run import conform
from hal.conformance.stage import Stage
from hal.device import Feature
from hal.devices.cpu import CpuDevice
from hal.dtypes import DType
from hal.errors import WeightsError
from hal.kernels.cpu import native, portable
from hal.kernels.cpu.linear import stored_weight
from hal.kernels.cpu.packed_weight import PackedWeight
from hal.kernels.cpu.portable import DOT_LEVELS, LEVELS, Level
from hal.kernels.cpu.quantized_weight import QuantizedWeight
from hal.kernels.reference.quantized_rows import QuantizedMatrix
from hal.opset import (
    attention,
    gated_activation,
    gather_rows,
    layer_norm,
    linear,
    mlp_block,
    plain_activation,
    qk_norm_rope,
    rms_norm,
    sample,
    vocab,
)
from hal.opset.attention import AttentionProblem, AttentionSpec
from hal.opset.linear import LinearProblem
from hal.sampling_params import SamplingParams
from hal.select import Op
from hal.weights import WEIGHT_FORMATS, LogicalWeight, WeightFormat

ALL_LEVELS = (*LEVELS, *DOT_LEVELS)
FORMATS = tuple(WEIGHT_FORMATS.values())
PRODUCTS = (linear, vocab, mlp_block)
NOT_IN_TINY = (layer_norm, gated_activation, plain_activation)
ROW_OPS = (
    gated_activation,
    gather_rows,
    layer_norm,
    plain_activation,
    qk_norm_rope,
    rms_norm,
    sample,
)
SMALL = LinearProblem(in_features=8, out_features=8, dtype=DType.FLOAT32)


def ops_of(level: Level) -> tuple[Op, ...]:
    """Where it is registered."""
    return PRODUCTS if level in DOT_LEVELS else (*PRODUCTS, attention)


@pytest.fixture(params=ALL_LEVELS, ids=lambda level: level.name)
def level(request: pytest.FixtureRequest) -> Level:
    """A level that this CPU runs, or a skip with the reason."""
    found: Level = request.param
    reason = found.lacks(CpuDevice().capabilities, DType.FLOAT32) or found.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return found


def skip_unless(level: Level, format: WeightFormat | None) -> None:
    problem = replace(SMALL, weights=format)
    if reason := level.rejects(CpuDevice().capabilities, problem):
        pytest.skip(reason)


@pytest.fixture
def stage() -> Stage:
    hal.kernels.register_all()
    return Stage(CpuDevice(), seed=20)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def stored(
    values: torch.Tensor, format: WeightFormat | None, level: Level, stage: Stage
) -> PackedWeight | QuantizedWeight:
    problem = LinearProblem(
        in_features=values.shape[1],
        out_features=values.shape[0],
        dtype=DType.FLOAT32,
        weights=format,
    )
    weight = stored_weight(problem, stage.binder, level.products)
    stage.binder.arena.allocate(stage.device)
    weight.allocate(stage.device)
    weight.load(0, LogicalWeight(values=values, dtype=DType.FLOAT32))
    return weight


def product(x: torch.Tensor, weight: PackedWeight | QuantizedWeight) -> torch.Tensor:
    out = torch.full((x.shape[0], weight.rows), float("nan"))
    weight.multiply(x, out)
    return out


@pytest.mark.parametrize("format", [None, *FORMATS])
@pytest.mark.usefixtures("one_thread")
def test_neither_batch_nor_threads_change_a_bit(
    level: Level, stage: Stage, format: WeightFormat | None
) -> None:
    skip_unless(level, format)
    x, weight = random(100, 300), stored(random(200, 300), format, level, stage)
    alone = product(x, weight)
    for num_tokens in (1, 2, 3, 5, 9, 50):
        assert torch.equal(product(x[:num_tokens], weight), alone[:num_tokens]), num_tokens
    torch.set_num_threads(2)
    assert torch.equal(product(x, weight), alone)
    assert torch.equal(product(x[:1], weight), alone[:1])


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_are_the_definitions(
    level: Level, stage: Stage, format: WeightFormat, dtype: torch.dtype
) -> None:
    """From every dtype of a checkpoint; loaded in slices that start and end anywhere."""
    skip_unless(level, format)
    values = random(100, 41).to(dtype)
    weight = stored(values.float(), format, level, stage)
    for first, last in ((37, 100), (0, 16), (16, 37)):
        part = LogicalWeight(values=values[first:last], dtype=DType[str(dtype)[6:].upper()])
        weight.load(first, part)
    reference = QuantizedMatrix(100, 41, format)
    reference.allocate(stage.device)
    reference.load(0, LogicalWeight(values=values.float(), dtype=DType.FLOAT32))
    ids = torch.tensor([99, 0, 15, 16, 37, 63, 64], dtype=torch.int32)
    out = torch.empty(len(ids), 41)
    weight.look_up(ids, out)
    assert torch.equal(out, reference.look_up(ids))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row_of_x_and_out_of_weights(
    level: Level, stage: Stage, format: WeightFormat, bad: float
) -> None:
    skip_unless(level, format)
    x, values = random(20, 70), random(20, 70)
    weight = stored(values, format, level, stage)
    clean = product(x, weight)
    x[3, 69] = bad
    out = product(x, weight)
    is_bad = ~out[3].isfinite() if format.keeps_activations else out[3].isnan()
    assert is_bad.all()
    others = [row for row in range(20) if row != 3]
    assert torch.equal(out[others], clean[others])
    values[7, 69] = bad
    with pytest.raises(WeightsError, match="1 rows of a weight hold NaN or infinity"):
        stored(values, format, level, stage)


@pytest.mark.parametrize("level", ALL_LEVELS, ids=lambda level: level.name)
def test_every_level_has_its_own_family(level: Level) -> None:
    hal.kernels.register_all()
    for op in ops_of(level):
        traits = op.kernels[level.name].traits
        assert traits.preference == level.preference < op.kernels["avx512_bf16"].traits.preference
        assert traits.is_batch_invariant(None)


@pytest.mark.usefixtures("one_thread")
def test_splits_of_a_long_context_change_no_bit(level: Level, stage: Stage) -> None:
    """A decode of 1500 keys alone, shared out by splits, beside others, and as part of a chunk."""
    if level in DOT_LEVELS:
        pytest.skip("has no attention of its own")
    problem = AttentionProblem(
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        dtype=DType.FLOAT32,
        block_size=16,
        spec=AttentionSpec(scale=0.2),
    )
    family = attention.kernels[level.name].implementation(problem, stage.binder)
    cache = PagedCache(stage, family, problem, [1500, 700])
    cache.plan([SequenceStep(1500, 1500), SequenceStep(700, 700)], [0, 1])
    family.write_kv(random(2200, problem.qkv_width), cache.kv)
    q = random(3, problem.qkv_width)

    def attended(steps: list[SequenceStep], first: int, last: int) -> torch.Tensor:
        cache.plan(steps, list(range(len(steps))))
        out = torch.full((last - first, 128), float("nan"))
        family.attend(q[first:last], cache.kv, out)
        return out

    alone = attended([SequenceStep(1, 1500)], 0, 1)
    beside = attended([SequenceStep(1, 1500), SequenceStep(1, 700)], 0, 2)
    chunk = attended([SequenceStep(3, 1500)], 0, 3)
    torch.set_num_threads(2)
    assert not alone.isnan().any()
    assert torch.equal(attended([SequenceStep(1, 1500)], 0, 1), alone)
    assert torch.equal(beside[:1], alone)
    assert torch.equal(attended([SequenceStep(1, 1498)], 0, 1), chunk[:1])


# What the module has beside its levels where it was built without AVX512.
_BASELINE = ("features", "advise_huge_pages", "gather_rows", "pack_rows", "gather_packed_rows")


@pytest.fixture
def built_for_it_alone(level: Level, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The native module as if the level were the highest that it was compiled for."""
    whole = native.load()
    names = (*_BASELINE, level.name)
    module = SimpleNamespace(**{name: getattr(whole, name) for name in names})
    module.has_avx512_bf16_kernels = lambda: False
    remembered = (
        native.module_unavailable,
        native.unavailable,
        native.quantized_unavailable,
        native.decoded_unavailable,
        portable._unavailable,
    )
    monkeypatch.setattr(native, "load", lambda: module)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


@pytest.mark.usefixtures("built_for_it_alone")
def test_a_level_calls_nothing_that_is_compiled_for_another(level: Level) -> None:
    """On this CPU a wrong call would give a right result; on one without AVX512 it would crash."""
    hal.kernels.register_all()
    rows = () if level in DOT_LEVELS else ROW_OPS
    for op in (*ops_of(level), *rows):
        kernel, device = op.kernels[level.name], CpuDevice()
        records = [conform(kernel, case, device) for case in cases_by_op()[op.name]]
        assert [str(record) for record in records if record.has_failed] == []
        assert any(record.has_passed for record in records), op.name


def test_a_model_runs_on_a_level_alone(level: Level) -> None:
    """With the reference's text: the codes and their sums are the same, and little else differs."""
    ours = [f"{op.name}={level.name}" for op in ops_of(level)]
    is_alone = level in LEVELS
    ours += [f"{op.name}={level.name}" for op in ROW_OPS if is_alone and op not in NOT_IN_TINY]
    ours += [] if is_alone else ["attention=reference"]
    reference = ["linear=reference_quantized", "vocab=reference_quantized", "mlp_block=composed"]
    reference += ["attention=reference"]
    texts = []
    for kernel in (ours, reference):
        with hal.LLM(quantization="int4", kernel=tuple(kernel), dtype="float32") as llm:
            params = SamplingParams(temperature=0, max_tokens=16)
            (answer,) = llm.generate(["Once upon a time there was"], params)
            texts.append(answer.outputs[0].text)
    assert texts[0] == texts[1]
    assert len(texts[0].split()) > 5


@pytest.mark.parametrize("level", ALL_LEVELS, ids=lambda level: level.name)
def test_formats_that_the_sources_do_not_know_are_refused(level: Level) -> None:
    caps = replace(CpuDevice().capabilities, features=frozenset({level.feature}))
    odd = replace(SMALL, weights=WeightFormat(codes=DType.INT4, group_size=16))
    assert level.rejects(caps, replace(SMALL, weights=WEIGHT_FORMATS["int8"])) is None
    assert "has no products with weights in " in (level.rejects(caps, odd) or "")
    assert (level.rejects(caps, SMALL) is None) is (level in LEVELS)
    half = replace(SMALL, dtype=DType.FLOAT16)
    assert "the problem is in float16" in (level.rejects(caps, half) or "")


def test_attention_that_the_sources_do_not_know_is_refused() -> None:
    hal.kernels.register_all()
    caps = replace(CpuDevice().capabilities, features=frozenset({Feature.AVX2}))
    problem = AttentionProblem(
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        dtype=DType.FLOAT32,
        block_size=16,
        spec=AttentionSpec(scale=0.125, window=9, softcap=30.0),
    )
    rejects = attention.kernels["avx2"].traits.rejects
    assert rejects(caps, problem) is None
    assert "head_dim is 24" in (rejects(caps, replace(problem, head_dim=24)) or "")
    assert "needs avx2" in (rejects(replace(caps, features=frozenset()), problem) or "")


def unavailable(monkeypatch: pytest.MonkeyPatch, load: Callable[[], ModuleType]) -> str:
    monkeypatch.setattr(native, "load", load)
    return portable._unavailable.__wrapped__("avx2", ()) or ""


class OtherModule(ModuleType):
    """Built for AVX2, loaded on a CPU that has none."""

    avx2 = SimpleNamespace(needs=["avx2", "fma"])

    def features(self) -> list[str]:
        return ["fma"]


def test_why_a_present_cpu_cannot_run_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> ModuleType:
        raise ImportError("no module named _C")

    assert "not built (no module named _C)" in unavailable(monkeypatch, missing)
    assert "compiled without avx2" in unavailable(monkeypatch, lambda: ModuleType("_C"))
    assert "needs avx2, which this CPU" in unavailable(monkeypatch, lambda: OtherModule("_C"))
