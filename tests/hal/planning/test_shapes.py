"""Shapes from config.json: parameters as published and as transformers builds them, and KV."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from published_configs import PUBLISHED

from hal.engine.config_fields import ConfigFields
from hal.errors import ModelError
from hal.kv import KVKind
from hal.planning.architectures import read_shape
from hal.planning.shape import ModelShape, Role

# transformers keeps this tensor of the checkpoint as a buffer, not as a parameter.
BUFFERS = {"deepseek-v3": 58 * 256}


def shape_of(name: str, **overrides: Any) -> ModelShape:
    return read_shape(ConfigFields({**PUBLISHED[name].config, **overrides}, name))


def kv_elements(shape: ModelShape) -> int:
    """Elements of one token over all layers."""
    return sum(layers.count * layers.elements_per_token() for layers in shape.kv)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_number(name: str) -> None:
    assert shape_of(name).num_parameters == PUBLISHED[name].num_parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_transformers(name: str) -> None:
    import torch
    import transformers

    config: Any = PUBLISHED[name].config
    auto = {
        "t5": transformers.AutoModelForSeq2SeqLM,
        "clip": transformers.AutoModel,
        "llava": transformers.AutoModelForImageTextToText,
        "gemma3": transformers.AutoModelForImageTextToText,
    }.get(config["model_type"], transformers.AutoModelForCausalLM)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = auto.from_config(transformers.AutoConfig.for_model(**config))
    theirs = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    if name == "flan-t5-large":  # ties what the published files keep apart
        theirs += 32128 * 1024
    assert shape_of(name).num_parameters == theirs + BUFFERS.get(name, 0)


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("llama-2-7b", 32 * 2 * 32 * 128),
        ("llama-3-8b", 32 * 2 * 8 * 128),  # grouped queries: a quarter
        ("falcon-7b", 32 * 2 * 1 * 64),  # one head for all queries
        ("starcoder", 40 * 2 * 1 * 128),
        ("falcon-180b", 80 * 2 * 8 * 64),
        ("gemma-7b", 28 * 2 * 16 * 256),  # head_dim x heads is not hidden_size
        ("deepseek-v3", 61 * (512 + 64)),  # one latent for 128 heads
        ("t5-large", 24 * 2 * 2 * 16 * 64),  # self and cross attention
        ("llava-1.5-7b", 32 * 2 * 32 * 128),  # the tower remembers nothing
        ("clip-vit-b32", 0),
    ],
)
def test_what_a_token_leaves_in_the_cache(name: str, elements: int) -> None:
    assert kv_elements(shape_of(name)) == elements


def test_latent_heads_are_one_head_for_every_rank() -> None:
    (latent,) = shape_of("deepseek-v2-lite").kv
    assert latent.kind is KVKind.LATENT
    assert latent.elements_per_token(tp=8) == latent.elements_per_token(tp=1) == 576


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("mistral-7b", {4096: 32}),
        ("mixtral-8x7b", {None: 32}),
        ("gemma-2-9b", {4096: 21, None: 21}),
        ("gemma-3-1b", {512: 22, None: 4}),
        ("gemma-3-4b", {1024: 29, None: 5}),
        ("gpt-oss-20b", {128: 12, None: 12}),
        ("qwen2-7b", {None: 28}),
        ("phi-3-mini", {2047: 32}),
    ],
)
def test_layers_with_a_window(name: str, windows: dict[int | None, int]) -> None:
    assert {layers.window: layers.count for layers in shape_of(name).kv} == windows


def test_qwen_windows_when_they_are_switched_on() -> None:
    kv = shape_of("qwen2-7b", use_sliding_window=True, max_window_layers=20).kv
    assert {layers.window: layers.count for layers in kv} == {None: 20, 131072: 8}


def test_layer_types_decide_where_they_are_written() -> None:
    kinds = ["sliding_attention", "full_attention"] * 21
    kv = shape_of("gemma-2-9b", layer_types=[kinds[0]] * 41 + [kinds[1]]).kv
    assert {layers.window: layers.count for layers in kv} == {4096: 41, None: 1}


def test_experts_count_by_how_many_a_token_meets() -> None:
    mixtral = shape_of("mixtral-8x7b")
    expert = 3 * 4096 * 14336 * 32
    embedding = 32000 * 4096
    assert mixtral.active_parameters == mixtral.num_parameters - 6 * expert - embedding
    assert shape_of("deepseek-v3").active_parameters == pytest.approx(37e9, rel=0.02)
    assert shape_of("qwen3-30b-a3b").active_parameters == pytest.approx(3.0e9, rel=0.05)


def test_a_tied_matrix_is_counted_once_and_multiplied() -> None:
    tied, untied = shape_of("gemma-2b"), shape_of("gemma-2b", tie_word_embeddings=False)
    assert untied.num_parameters - tied.num_parameters == 256000 * 2048
    assert [w.role for w in tied.weights if w.name == "embedding"] == [Role.HEAD]


def test_an_unknown_model_type_is_planned_as_a_usual_decoder_and_says_so() -> None:
    known = PUBLISHED["llama-2-7b"]
    shape = shape_of("llama-2-7b", model_type="flamingo")
    assert "model_type 'flamingo' is not known" in shape.guess
    assert shape.num_parameters == known.num_parameters
    other_names = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100, "d_ff": 128}
    shape = read_shape(ConfigFields({"model_type": "odd", **other_names}, "odd"))
    assert shape.num_parameters == 2 * 100 * 64 + 5 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128)


def test_an_unknown_model_with_experts_counts_them() -> None:
    dense, moe = shape_of("llama-2-7b"), shape_of("mixtral-8x7b")
    unknown = shape_of("mixtral-8x7b", model_type="new_moe")
    assert unknown.num_parameters == moe.num_parameters
    assert unknown.active_parameters == moe.active_parameters
    assert "8 gated experts in every layer" in unknown.guess
    latent = shape_of("deepseek-v3", model_type="deepseek_v9")
    assert latent.kv == shape_of("deepseek-v3").kv and "like DeepSeek" in latent.guess
    assert not dense.guess


def test_every_missing_key_is_named() -> None:
    with pytest.raises(ModelError, match="lacks num_hidden_layers, vocab_size; with model_type 'x"):
        read_shape(ConfigFields({"model_type": "x", "d_model": 8, "n_heads": 2}, "c"))
    with pytest.raises(ModelError, match="c lacks intermediate_size, num_hidden_layers, num_a"):
        read_shape(ConfigFields({"model_type": "llama", "hidden_size": 8}, "c"))
    with pytest.raises(ModelError, match="kv_lora_rank"):
        shape_of("deepseek-v3", kv_lora_rank=None)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("value", ["many", -1, 0, 2.5, [], {}, True, 1e30])
def test_nonsense_in_any_size_is_a_model_error(name: str, value: object) -> None:
    config = PUBLISHED[name].config
    for key, old in config.items():
        if not isinstance(old, int) or isinstance(old, bool) or old == 0:
            continue
        try:
            read_shape(ConfigFields({**config, key: value}, "config.json"))
        except ModelError as error:
            assert "config.json" in error.message


def test_a_text_model_without_its_own_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelError, match="text_config"):
        read_shape(ConfigFields.read(path))
