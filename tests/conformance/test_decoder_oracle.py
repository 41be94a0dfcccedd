"""The decoder in numpy against transformers in float64, once per architecture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hal.conformance.decoder_oracle import DecoderOracle, plain_decoder
from hal.conformance.limits import Float64, overall_l2, relative_l2
from hal.conformance.model_run import Int32
from hal.conformance.tiny_checkpoint import tensors_of, write_model
from hal.conformance.tiny_models import SHAPES, TinyModel, make_model
from hal.dtypes import DType
from hal.engine.models import MODELS

# transformers keeps rotary frequencies in float32 whatever the model's dtype.
FREQUENCY_ROUNDING = 1e-5


def text() -> Int32:
    return np.random.default_rng(3).integers(0, 151, 60).astype(np.int32)


def transformers_logits(model: TinyModel, folder: Path) -> Float64:
    write_model(model, folder)
    config = transformers.AutoConfig.from_pretrained(folder, bos_token_id=0, eos_token_id=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float64, attn_implementation="eager"
    )
    if model.shape.num_experts:  # torch's grouped product has no float64
        theirs.set_experts_implementation("eager")
    with torch.no_grad():
        logits = theirs.eval()(torch.from_numpy(text()[None].astype(np.int64))).logits[0]
    return np.asarray(logits.numpy(), dtype=np.float64)


def test_every_supported_architecture_has_a_tiny_model() -> None:
    assert SHAPES.keys() == MODELS.keys()


@pytest.mark.parametrize("model_type", SHAPES)
def test_oracle_agrees_with_transformers(model_type: str, tmp_path: Path) -> None:
    model = make_model(model_type, DType.FLOAT32)
    expected = transformers_logits(model, tmp_path)
    assert relative_l2(DecoderOracle(model).logits(text()), expected) < FREQUENCY_ROUNDING


def test_a_wrong_oracle_would_be_far_from_it(tmp_path: Path) -> None:
    model = make_model("mistral", DType.FLOAT32)
    expected = transformers_logits(model, tmp_path)
    wider = replace(model, shape=replace(model.shape, window=12))
    assert relative_l2(DecoderOracle(wider).logits(text()), expected) > 0.05


@pytest.mark.parametrize("model_type", SHAPES)
def test_weights_are_values_of_the_dtype_and_depend_on_the_seed(model_type: str) -> None:
    model = make_model(model_type, DType.BFLOAT16)
    again, other = make_model(model_type, DType.BFLOAT16), make_model(model_type, DType.BFLOAT16, 1)
    for (name, values), (_, same), (_, different) in zip(
        tensors_of(model), tensors_of(again), tensors_of(other), strict=True
    ):
        rounded = torch.from_numpy(values.copy()).bfloat16().double().numpy()
        assert np.array_equal(values, rounded), name
        assert np.array_equal(values, same), name
        assert not np.array_equal(values, different), name


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_the_plain_decoder_is_as_coarse_as_its_dtype(dtype: DType) -> None:
    """The yardstick itself: a rounding left out or made twice would move it."""
    spacing = {DType.BFLOAT16: 2.0**-8, DType.FLOAT16: 2.0**-11}[dtype]
    for model_type in SHAPES:
        model = make_model(model_type, dtype)
        expected = DecoderOracle(model).logits(text())
        error = overall_l2(plain_decoder(model).logits(text()), expected)
        assert 1.0 * spacing < error < 3.0 * spacing
