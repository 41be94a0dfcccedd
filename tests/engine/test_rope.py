"""Rotary frequencies equal transformers' for every scaling, at several lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hal.engine.config_fields import ConfigFields
from hal.engine.rope import read_rope, rope_frequencies
from hal.errors import ModelError, UnsupportedError

HEAD_DIM = 16
MAX_POSITION = 512
THETA = 500_000.0

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.25,
    },
    {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "short_factor": [1.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
        "long_factor": [2.0 + 0.5 * i for i in range(HEAD_DIM // 2)],
    },
]


def _transformers_config(scaling: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITION,
        rope_parameters={"rope_theta": THETA, **scaling},
    )


def _fields(**values: object) -> ConfigFields:
    return ConfigFields(values, "config.json")


@pytest.mark.parametrize("max_len", [64, 128, 129, 512, 2048])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_scaled_frequencies_equal_transformers(scaling: dict[str, Any], max_len: int) -> None:
    compute = ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
    inv_freq, attention_scaling = compute(_transformers_config(scaling), None, seq_len=max_len)

    rope = read_rope(_fields(rope_parameters={"rope_theta": THETA, **scaling}), MAX_POSITION)
    ours = rope_frequencies(rope, HEAD_DIM, max_len)

    np.testing.assert_allclose(ours.inv_freq, inv_freq.double().numpy(), rtol=1e-6)
    assert ours.attention_scaling == pytest.approx(attention_scaling, rel=1e-6)


@pytest.mark.parametrize("partial", [1.0, 0.5])
def test_default_frequencies_follow_the_formula(partial: float) -> None:
    rope = read_rope(_fields(rope_theta=THETA, partial_rotary_factor=partial), MAX_POSITION)

    ours = rope_frequencies(rope, HEAD_DIM, MAX_POSITION)

    dim = rope.rotary_dim(HEAD_DIM)
    assert dim == HEAD_DIM * partial
    expected = [THETA ** (-2 * pair / dim) for pair in range(dim // 2)]
    np.testing.assert_allclose(ours.inv_freq, expected, rtol=1e-12)
    assert ours.attention_scaling == 1.0


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["rope_type"])
def test_older_keys_mean_the_same(scaling: dict[str, Any]) -> None:
    renamed = {("type" if key == "rope_type" else key): value for key, value in scaling.items()}

    older = read_rope(_fields(rope_theta=THETA, rope_scaling=renamed), MAX_POSITION)

    newer = _fields(rope_parameters={"rope_theta": THETA, **scaling})
    assert older == read_rope(newer, MAX_POSITION)


def test_su_is_longrope_with_the_ratio_of_contexts_as_factor() -> None:
    factors = [1.0] * (HEAD_DIM // 2)
    scaling = {"type": "su", "short_factor": factors, "long_factor": factors}
    fields = _fields(rope_scaling=scaling, original_max_position_embeddings=128)

    rope = read_rope(fields, MAX_POSITION)

    assert (rope.kind, rope.factor, rope.original_max_position) == ("longrope", 4.0, 128)


def test_longrope_with_too_few_factors_names_the_list() -> None:
    scaling = {"type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [1.0]}
    rope = read_rope(_fields(rope_scaling=scaling), MAX_POSITION)

    with pytest.raises(ModelError, match="short_factor has 1 entries; 8 are needed"):
        rope_frequencies(rope, HEAD_DIM, MAX_POSITION)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "mrope"}, "not supported yet: rope_type 'mrope'"),
        ({"full_attention": {"rope_type": "default"}}, "per layer type"),
    ],
)
def test_unknown_scalings_are_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read_rope(_fields(rope_parameters=scaling), MAX_POSITION)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "linear"}, "'factor' must be a number; it is missing"),
        ({"rope_type": "linear", "factor": "4"}, "'factor' must be a number; it is '4'"),
        ({"rope_type": "linear", "factor": -1.0}, "factor -1 above 0"),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4},
            "high_freq_factor 4 must be above",
        ),
    ],
)
def test_wrong_values_are_refused(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_rope(_fields(rope_parameters=scaling), MAX_POSITION)
