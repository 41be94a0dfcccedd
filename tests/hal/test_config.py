"""resolve(): every open setting filled, each with its reason; nothing guessed or swallowed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from hal.config import EngineConfig, ModelLimits, ResolvedConfig, resolve
from hal.device import Capabilities, Feature, Memory, MemoryKind
from hal.dtypes import DType
from hal.errors import ConfigError, UnsupportedError
from hal.weights import WEIGHT_FORMATS, WeightFormat

MEMORY = Memory(kind=MemoryKind.HOST, total_bytes=1 << 34, available_bytes=1 << 33)
CPU = Capabilities(
    vendor="intel",
    name="a CPU",
    arch="x86_avx512_bf16",
    memory=MEMORY,
    compute_units=2,
    simd_width=16,
    features=frozenset({Feature.AVX512, Feature.AVX512_BF16, Feature.BF16_MMA}),
    is_accelerator=False,
)
OLD_CPU = replace(CPU, arch="x86_avx2", features=frozenset({Feature.AVX2}))
CARD = replace(
    CPU,
    name="a card",
    arch="sm_90",
    is_accelerator=True,
    features=frozenset({Feature.BF16_MMA, Feature.FP16_MMA, Feature.GRAPHS}),
)
V100 = replace(CARD, arch="sm_70", features=frozenset({Feature.FP16_MMA}))
PASCAL = replace(CARD, arch="sm_61", features=frozenset())
MODEL = ModelLimits(dtype=DType.BFLOAT16, max_position_embeddings=4096)


def resolved(
    caps: Capabilities = CPU, model: ModelLimits = MODEL, **settings: Any
) -> ResolvedConfig:
    return resolve(EngineConfig(**settings), caps, model)


def test_quantization() -> None:
    plain, int4 = resolved(), resolved(quantization="int4-g128")
    assert (plain.weights, plain.head_weights) == (None, None)
    assert int4.weights == WeightFormat(codes=DType.INT4, group_size=128)
    assert int4.head_weights == WeightFormat(codes=DType.INT8)
    assert "set by the user; the matrix that makes logits is int8" in reason(int4, "quantization")
    assert resolved(caps=OLD_CPU, quantization="int8").weights == WeightFormat(codes=DType.INT8)


@pytest.mark.parametrize("caps", [CPU, OLD_CPU, CARD, V100])
def test_quantization_is_asked_of_the_kernels_not_of_the_device(caps: Capabilities) -> None:
    found = resolved(caps=caps, quantization="fp8")
    assert found.weights == WeightFormat(codes=DType.FLOAT8_E4M3FN, keeps_activations=True)
    assert found.head_weights == WeightFormat(codes=DType.INT8, keeps_activations=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("awq", "quantization='awq'; choose one of none, int8[-a16], fp8"),
        ("int4-g256", "nearest: int4-g64, int4-g128"),
        ("fp8-e5m2", "nearest: fp8"),
        ("int4-int4", "nearest: int4"),
    ],
)
def test_an_unknown_format_is_refused_with_the_nearest(name: str, said: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        EngineConfig(quantization=name)
    assert said in caught.value.message


def test_suffixes_of_a_format_come_in_any_order() -> None:
    assert resolved(quantization="int4-a16-asym").weights == WEIGHT_FORMATS["int4-asym-a16"]


@pytest.mark.parametrize(("name", "format"), WEIGHT_FORMATS.items())
def test_a_format_is_called_what_it_is_asked_for_as(name: str, format: WeightFormat) -> None:
    config = resolved(quantization=name)
    assert (str(format), config.weights) == (name, format)
    head = "int8-a16" if format.keeps_activations else "int8"
    assert str(config.head_weights) == head
    assert f"the matrix that makes logits is {head}," in reason(config, "quantization")


def reason(config: ResolvedConfig, name: str) -> str:
    (choice,) = (c for c in config.choices if c.name == name)
    return choice.reason


@pytest.mark.parametrize(
    ("caps", "stored", "dtype", "why"),
    [
        (CPU, DType.BFLOAT16, DType.BFLOAT16, "as stored"),
        (CPU, DType.FLOAT16, DType.BFLOAT16, "multiplies bfloat16 natively"),
        (CPU, DType.FLOAT32, DType.FLOAT32, "as stored"),
        (OLD_CPU, DType.FLOAT16, DType.FLOAT32, "no 16-bit matrix"),
        (OLD_CPU, DType.BFLOAT16, DType.FLOAT32, "x86_avx2 has no 16-bit"),
        (CARD, DType.FLOAT16, DType.FLOAT16, "as stored"),
        (V100, DType.BFLOAT16, DType.FLOAT16, "weights above 65504 are refused"),
        (PASCAL, DType.BFLOAT16, DType.FLOAT32, "sm_61 has no 16-bit"),
        (CPU, DType.FLOAT8_E4M3FN, DType.FLOAT32, "checkpoint is float8_e4m3fn"),
    ],
)
def test_dtype_auto_fits_the_device(
    caps: Capabilities, stored: DType, dtype: DType, why: str
) -> None:
    config = resolved(caps, replace(MODEL, dtype=stored))
    assert config.dtype is dtype
    assert why in reason(config, "dtype")


def test_a_dtype_that_was_asked_for_is_used_or_refused() -> None:
    assert resolved(dtype="fp16").dtype is DType.FLOAT16
    assert reason(resolved(dtype="torch.float32"), "dtype") == "set by the user"
    with pytest.raises(ConfigError, match="int8 cannot hold activations"):
        resolved(dtype="int8")
    with pytest.raises(ConfigError, match="unknown dtype 'float17'; known: .*bfloat16"):
        resolved(dtype="float17")


def test_max_model_len_is_the_models_unless_lowered() -> None:
    assert resolved().max_model_len == 4096
    assert resolved(max_model_len=100).max_model_len == 100
    with pytest.raises(ConfigError, match="5000 is above the model's context of 4096"):
        resolved(max_model_len=5000)


@pytest.mark.parametrize(
    ("settings", "budget", "why"),
    [
        ({}, 2048, "longer prompts run in chunks"),
        ({"max_model_len": 512}, 512, "a whole prompt fits"),
        ({"max_model_len": 16, "max_num_seqs": 64}, 64, "a whole prompt fits"),
        ({"max_num_seqs": 3000}, 3000, "longer prompts run in chunks"),
        ({"chunked_prefill": False}, 4096, "chunked prefill is off"),
        ({"max_num_batched_tokens": 64}, 64, "set by the user"),
    ],
)
def test_the_step_budget_holds_every_decode(
    settings: dict[str, Any], budget: int, why: str
) -> None:
    config = resolved(**settings)
    assert config.max_num_batched_tokens == budget
    assert config.max_num_batched_tokens >= config.max_num_seqs
    assert why in reason(config, "max_num_batched_tokens")


def test_a_step_budget_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="63 is below max_num_seqs 64.*Raise it to 64"):
        resolved(max_num_batched_tokens=63)
    with pytest.raises(ConfigError, match="below max_model_len 4096 while"):
        resolved(max_num_batched_tokens=2048, chunked_prefill=False)


def test_graphs_are_off_with_a_reason() -> None:
    assert "no graph capture" in reason(resolved(), "graphs")
    assert reason(resolved(CARD, enforce_eager=True), "graphs") == "enforce_eager is set"


def test_graphs_are_on_where_the_device_has_them_until_a_kernel_disagrees() -> None:
    config = resolved(CARD)
    assert config.use_graphs
    assert "recorded once" in reason(config, "graphs")
    off = config.without_graphs("attention runs sdpa, which cannot be captured")
    assert not off.use_graphs
    assert reason(off, "graphs") == "attention runs sdpa, which cannot be captured"
    assert [c for c in off.choices if c.name != "graphs"] == [
        c for c in config.choices if c.name != "graphs"
    ]


def test_every_choice_shows_the_value_that_is_used() -> None:
    config = resolved(max_num_seqs=8, block_size=32)
    shown = {c.name: c.value for c in config.choices}
    assert shown == {
        "dtype": str(config.dtype),
        "quantization": "none",
        "kv_cache_dtype": str(config.dtype),
        "max_model_len": str(config.max_model_len),
        "max_num_batched_tokens": str(config.max_num_batched_tokens),
        "block_size": str(config.block_size),
        "graphs": "off",
    }
    assert config.block_size == 32
    assert all(c.reason for c in config.choices)


def test_resolve_leaves_the_config_as_it_was() -> None:
    config = EngineConfig()
    done = resolve(config, CPU, MODEL)
    assert config == EngineConfig()
    assert done.config is config
    with pytest.raises(FrozenInstanceError):
        done.max_num_seqs = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "threads"]
)
@pytest.mark.parametrize("value", [0, -1, 2.5, "8", True])
def test_counts_are_whole_numbers(name: str, value: object) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"{name} must be a whole number of at least 1"):
        EngineConfig(**settings)


def test_max_num_seqs_has_no_automatic_value() -> None:
    settings: dict[str, Any] = {"max_num_seqs": None}
    with pytest.raises(ConfigError, match="max_num_seqs must be a whole number"):
        EngineConfig(**settings)


def test_a_cache_dtype_that_is_not_honoured_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="kv_cache_dtype='fp4'; choose auto, .* int8, fp8"):
        EngineConfig(kv_cache_dtype="fp4")
    with pytest.raises(UnsupportedError, match="'float32' for a model in bfloat16; choose auto"):
        resolved(kv_cache_dtype="float32")


def test_the_cache_keeps_the_models_dtype_unless_codes_are_asked_for() -> None:
    assert resolved().kv_dtype is None
    assert resolved(kv_cache_dtype="bfloat16").kv_dtype is None
    assert resolved(kv_cache_dtype="int8").kv_dtype is DType.INT8
    shown = {c.name: c.value for c in resolved(kv_cache_dtype="int8").choices}
    assert shown["kv_cache_dtype"] == "int8"
    assert resolved(CARD, kv_cache_dtype="fp8").kv_dtype is DType.FLOAT8_E4M3FN


def test_a_device_whose_fp8_is_another_is_told_which_the_cache_keeps() -> None:
    fnuz = replace(CARD, arch="gfx942", features=CARD.features | {Feature.FP8_FNUZ_MMA})
    said = reason(resolved(fnuz, kv_cache_dtype="fp8"), "kv_cache_dtype")
    assert said.endswith("codes are OCP e4m3, also on gfx942, whose own fp8 is FNUZ")
    assert "FNUZ" not in reason(resolved(fnuz, kv_cache_dtype="int8"), "kv_cache_dtype")
    assert "FNUZ" not in reason(resolved(CARD, kv_cache_dtype="fp8"), "kv_cache_dtype")


def test_kernel_overrides_are_read_once_per_op() -> None:
    config = EngineConfig(kernel=("linear=torch", "attention=sdpa"))
    assert config.kernel_overrides == {"linear": "torch", "attention": "sdpa"}
    with pytest.raises(ConfigError, match="'linear' is not OP=NAME"):
        EngineConfig(kernel=("linear",))
    with pytest.raises(ConfigError, match="name an op twice"):
        EngineConfig(kernel=("linear=torch", "linear=reference"))
