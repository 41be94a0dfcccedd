"""config.json is read as transformers reads it, and refused with the file and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from hal.dtypes import DType
from hal.engine.model_config import ModelConfig, read_model_config
from hal.errors import ConfigError, HalError, ModelError, UnsupportedError

SUPPORTED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gpt2")

# As published checkpoints write them, old keys included; only sizes that matter for the reading.
LLAMA2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "torch_dtype": "float16",
    "eos_token_id": 2,
}
LLAMA3: dict[str, Any] = {
    **LLAMA2,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "torch_dtype": "bfloat16",
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
}
MISTRAL: dict[str, Any] = {
    **LLAMA2,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
}
QWEN2: dict[str, Any] = {
    **LLAMA2,
    "model_type": "qwen2",
    "num_key_value_heads": 4,
    "use_sliding_window": True,
    "sliding_window": 131072,
    "max_window_layers": 28,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
QWEN3: dict[str, Any] = {
    **QWEN2,
    "model_type": "qwen3",
    "use_sliding_window": False,
    "head_dim": 64,
    "attention_bias": True,
}
MIXTRAL: dict[str, Any] = {
    **LLAMA2,
    "model_type": "mixtral",
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-5,
}
QWEN3_MOE: dict[str, Any] = {
    **QWEN3,
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
}


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


PUBLISHED = {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "mistral without window": {**MISTRAL, "sliding_window": None},
    "mistral by default": _without(MISTRAL, "sliding_window", "num_key_value_heads"),
    "qwen2": QWEN2,
    "qwen2 by default": _without(QWEN2, "num_key_value_heads", "tie_word_embeddings"),
    "qwen3": QWEN3,
    "qwen3 by default": _without(QWEN3, "head_dim", "sliding_window", "attention_bias"),
    "mixtral": MIXTRAL,
    "mixtral by default": _without(
        MIXTRAL,
        "num_key_value_heads",
        "num_local_experts",
        "num_experts_per_tok",
        "rope_theta",
        "rms_norm_eps",
    ),
    "mixtral with window": {**MIXTRAL, "sliding_window": 4096},
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe by default": _without(
        QWEN3_MOE, "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"
    ),
    "qwen3_moe with dense layers": {
        **QWEN3_MOE,
        "decoder_sparse_step": 3,
        "mlp_only_layers": [2, 8],
    },
    "gpt2": GPT2,
    "gpt2 with n_inner": {**GPT2, "n_inner": 1000, "activation_function": "gelu"},
}


def _write(folder: Path, config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _read(folder: Path, config: object) -> ModelConfig:
    return read_model_config(_write(folder, config), SUPPORTED)


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_equals_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    ours = _read(tmp_path, config)

    theirs = AutoConfig.from_pretrained(str(tmp_path))
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.vocab_size == theirs.vocab_size
    assert ours.hidden_size == theirs.hidden_size
    assert ours.num_layers == theirs.num_hidden_layers
    assert ours.num_heads == theirs.num_attention_heads
    assert ours.num_kv_heads == getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
    assert ours.head_dim == head_dim
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.dtype.label == str(theirs.dtype or "float32").removeprefix("torch.")
    rope = getattr(theirs, "rope_parameters", None)
    if ours.rope is None:
        assert rope is None
    else:
        assert rope is not None
        assert ours.rope.theta == rope["rope_theta"]
        assert ours.rope.kind == rope["rope_type"]


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n.startswith(("mixtral", "qwen3_moe"))])
def test_experts_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    ours = _read(tmp_path, PUBLISHED[name])
    theirs = AutoConfig.from_pretrained(str(tmp_path))
    assert ours.experts is not None
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.windows == (theirs.sliding_window,) * ours.num_layers
    assert (ours.experts.num_experts, ours.experts.top_k) == (
        theirs.num_experts,
        theirs.num_experts_per_tok,
    )
    is_mixtral = ours.model_type == "mixtral"
    width = theirs.intermediate_size if is_mixtral else theirs.moe_intermediate_size
    assert ours.experts.intermediate_size == width
    assert ours.experts.norm_topk_prob is (is_mixtral or theirs.norm_topk_prob)


def test_layers_without_experts(tmp_path: Path) -> None:
    config = _read(tmp_path, PUBLISHED["qwen3_moe with dense layers"])
    assert [i for i in range(config.num_layers) if config.has_experts(i)] == [
        5,
        11,
        14,
        17,
        20,
        23,
        26,
        29,
    ]
    dense = _read(tmp_path, {**QWEN3_MOE, "mlp_only_layers": list(range(32))})
    assert dense.experts is None
    assert not any(map(dense.has_experts, range(32)))


def test_llama3_keeps_every_detail(tmp_path: Path) -> None:
    config = _read(tmp_path, LLAMA3)

    assert config.architecture == "LlamaForCausalLM"
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)
    assert config.dtype is DType.BFLOAT16
    assert config.norm_eps == 1e-5
    assert config.rope is not None
    assert config.rope.original_max_position == 8192
    assert config.rope.factor == 8.0
    assert config.windows == (None,) * 32


def test_both_generations_of_keys_mean_the_same(tmp_path: Path) -> None:
    newer = _without(LLAMA3, "rope_scaling", "rope_theta", "torch_dtype")
    newer["rope_parameters"] = {"rope_theta": 500000.0, **LLAMA3["rope_scaling"]}
    newer["dtype"] = "bfloat16"

    assert _read(tmp_path, newer) == _read(tmp_path, LLAMA3)


def test_bias_of_each_architecture(tmp_path: Path) -> None:
    biases = {
        name: (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm)
        for name, config in ((n, _read(tmp_path, PUBLISHED[n])) for n in PUBLISHED)
    }

    assert biases["llama2"] == (False, False, False, False)
    assert biases["mistral"] == (False, False, False, False)
    assert biases["qwen2"] == (True, False, False, False)
    assert biases["qwen3"] == (True, True, False, True)
    assert biases["gpt2"] == (True, True, True, False)


@pytest.mark.parametrize("layer_types", [None, ["full_attention"] * 28 + ["sliding_attention"] * 4])
def test_qwen2_windows_by_layer(tmp_path: Path, layer_types: list[str] | None) -> None:
    config = _read(tmp_path, {**QWEN2, "layer_types": layer_types})

    assert config.windows == (None,) * 28 + (131072,) * 4


def test_mistral_windows_every_layer(tmp_path: Path) -> None:
    assert _read(tmp_path, MISTRAL).windows == (4096,) * 32


@pytest.mark.parametrize("arch", SUPPORTED)
def test_reads_what_transformers_writes(tiny_checkpoint: Callable[..., Path], arch: str) -> None:
    config = read_model_config(tiny_checkpoint(arch), SUPPORTED)

    assert (config.model_type, config.hidden_size, config.head_dim) == (arch, 64, 16)
    assert config.dtype is DType.FLOAT32


def test_unknown_architecture_lists_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'bert' is not one of: gpt2, llama, mistral"):
        _read(tmp_path, {"model_type": "bert"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "4096"}, "'hidden_size' must be a whole number; it is '4096'"),
        ({"vocab_size": True}, "'vocab_size' must be a whole number"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' must be from 1 to"),
        ({"hidden_size": 10**30}, "'hidden_size' must be from 1 to 2147483647"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers; at most 10000"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' must be a finite number; it is nan"),
        ({"num_attention_heads": None}, "'num_attention_heads' must be a whole number; it is miss"),
        ({"num_key_value_heads": 5}, "32 attention heads cannot share 5 key/value heads"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"model_type": 3}, "'model_type' must be a string"),
        ({"attention_bias": "yes"}, "'attention_bias' must be true or false"),
    ],
)
def test_wrong_values_name_the_key(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        _read(tmp_path, {**LLAMA2, **change})
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA2, "quantization_config": {"quant_method": "gptq"}}, "quantized with gptq"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights=false"),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx=true"),
        (
            {**MIXTRAL, "shared_expert_intermediate_size": 512},
            "shared_expert_intermediate_size=512",
        ),
        ({**QWEN3_MOE, "n_shared_experts": 1}, "n_shared_experts=1"),
        ({**QWEN3_MOE, "use_sliding_window": True}, "use_sliding_window=true"),
        ({**QWEN2, "layer_types": ["linear_attention"] * 32}, "layer types linear_attention"),
    ],
)
def test_settings_that_are_not_honoured_are_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        _read(tmp_path, config)


def test_more_experts_for_a_token_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'num_experts_per_tok' is 9; there are 8 experts"):
        _read(tmp_path, {**MIXTRAL, "num_experts_per_tok": 9})


def test_layer_types_that_contradict_other_keys(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'layer_types' has 1 entries for 32 layers"):
        _read(tmp_path, {**QWEN2, "layer_types": ["full_attention"]})
    with pytest.raises(ModelError, match="use_sliding_window is false"):
        _read(tmp_path, {**QWEN3, "layer_types": ["sliding_attention"] * 32})


def test_unknown_dtype_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'float3'"):
        _read(tmp_path, {**LLAMA2, "torch_dtype": "float3"})


JSON_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "linear", "dynamic", "yarn", "longrope", "llama3", "bfloat16"]),
    st.lists(st.integers(-1, 3), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "a"]), st.integers(), max_size=2),
)


@given(
    config=st.sampled_from(list(PUBLISHED.values())),
    changes=st.dictionaries(
        st.sampled_from(sorted({**QWEN3_MOE, **MIXTRAL, **GPT2})), JSON_VALUES, max_size=3
    ),
    scaling=st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), JSON_VALUES),
)
def test_any_value_is_either_read_or_named(
    config_folder: Path, config: dict[str, Any], changes: dict[str, Any], scaling: dict[str, Any]
) -> None:
    try:
        _read(config_folder, {**config, "rope_parameters": scaling, **changes})
    except HalError as error:
        assert str(error)


@pytest.fixture(scope="module")
def config_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")

    with pytest.raises(ModelError, match=r"config\.json"):
        read_model_config(tmp_path, SUPPORTED)
