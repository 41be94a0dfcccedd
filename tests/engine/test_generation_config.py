"""EOS ids and sampling defaults of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hal.engine.generation_config import GenerationDefaults, read_generation_defaults
from hal.engine.tokenizer import Tokenizer
from hal.errors import ModelError
from hal.sampling_params import SamplingParams


def _read(folder: Path, config: dict[str, Any], generation: Any = None) -> GenerationDefaults:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_generation_defaults(folder)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 2}, None, {2}),
        ({"eos_token_id": [2, 5]}, {"temperature": 1.0}, {2, 5}),
        ({"eos_token_id": 2}, {"eos_token_id": [7, 8]}, {7, 8}),
        ({"eos_token_id": 2}, {"eos_token_id": 0}, {0}),
        ({"eos_token_id": None}, {}, set()),
    ],
)
def test_eos_ids(
    tmp_path: Path, config: dict[str, Any], generation: Any, expected: set[int]
) -> None:
    assert _read(tmp_path, config, generation).eos_token_ids == expected


def test_the_tokenizers_eos_ends_a_text_too(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')

    defaults = read_generation_defaults(tmp_path, Tokenizer.load(tokenizer_folder))

    assert defaults.eos_token_ids == {0, 2}


def test_sampling_defaults(tmp_path: Path) -> None:
    generation = {
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": None,
        "repetition_penalty": 1,
        "max_new_tokens": 300,
        "do_sample": True,
    }

    defaults = _read(tmp_path, {}, generation)

    assert defaults.sampling_params == SamplingParams(temperature=0.6, top_p=0.9, top_k=20)
    assert defaults.max_new_tokens == 300


def test_without_the_file_nothing_is_changed(tmp_path: Path) -> None:
    assert _read(tmp_path, {}) == GenerationDefaults()


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"temperature": -1}, "temperature must be a number from 0 to 2; got -1"),
        ({"top_p": "high"}, "'top_p' must be a number; it is 'high'"),
        ({"eos_token_id": "</s>"}, "'eos_token_id' must be a token id or a list"),
        ({"eos_token_id": [True]}, "'eos_token_id' must be a token id or a list"),
        ([], "must hold a JSON object"),
    ],
)
def test_wrong_values_name_the_file(tmp_path: Path, generation: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        _read(tmp_path, {}, generation)
    assert "generation_config.json" in str(caught.value)


def test_reads_what_transformers_writes(tiny_checkpoint: Callable[..., Path]) -> None:
    assert read_generation_defaults(tiny_checkpoint("llama")).eos_token_ids == {2}
