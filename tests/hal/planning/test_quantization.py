"""Bytes of quantised weights: by hand, for checkpoints and for plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import hal
from hal.dtypes import DType
from hal.engine.config_fields import ConfigFields
from hal.errors import ConfigError
from hal.kernels.cpu.quantized_weight import QuantizedWeight
from hal.planning.quantization import Scheme, planned_scheme, stored_scheme
from hal.planning.shape import ModelShape
from hal.planning.sizing import Basis
from hal.weights import WEIGHT_FORMATS

Published = Callable[..., str]


def scheme(**config: Any) -> Scheme:
    found = stored_scheme(ConfigFields({"quantization_config": config}, "config.json"))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "num_bytes"),
    [
        # rows 256, columns 512: 131072 values
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 65536 + 1024 * 2.5 + 512 * 4),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 131072 + 256 * 3 + 512 * 4),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 65536 + 1024 * 2.5),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": False},
            65536 + 4096,
        ),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 131072 + 2 * 4 * 4),
        ({"quant_method": "fp8"}, 131072 + 256 * 4),
        ({"quant_method": "mxfp4"}, 65536 + 256 * 16),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 131072 + 256 * 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 65536 + 256 * 8 * 4),
        (
            {"quant_method": "bitsandbytes", "bnb_4bit_use_double_quant": True},
            65536 + 256 * 8 * 9 / 8,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
            },
            65536 + 1024 * 2,
        ),
    ],
)
def test_bytes_of_one_matrix(config: dict[str, Any], num_bytes: float) -> None:
    assert scheme(**config).num_bytes(256, 512) == num_bytes


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'magic' is not known to planning; known: gptq, awq"):
        scheme(quant_method="magic")
    with pytest.raises(
        ConfigError, match=r"'int3' is not known; choose one of none, int8\[-a16\], fp8"
    ):
        planned_scheme("int3")


# Of llama-3-8b: rows by columns of a layer's matrices, and of the one that makes logits.
LAYER = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
HEAD = (128256, 4096)


@pytest.mark.parametrize("device", ["h100", "mi300x", "rtx4090"])
@pytest.mark.parametrize(
    ("name", "of_a_row", "of_a_weight"),
    [("int8", 4, 1.0), ("fp8", 4, 1.0), ("int4", 0, 0.5 + 2 / 32), ("int4-g128-asym", 0, 67 / 128)],
)
def test_an_accelerator_is_planned_to_the_byte(
    published: Published, device: str, name: str, of_a_row: int, of_a_weight: float
) -> None:
    """int8 and fp8: a scale of 4 bytes a row. int4: 2 bytes a group, and 1 for its zero."""
    report = hal.plan(published("llama-3-8b"), device=device, quantization=name, ctx=8192)
    layer = sum(rows * (of_a_row + of_a_weight * columns) for rows, columns in LAYER)
    head, embedding = HEAD[0] * (4 + HEAD[1]), 2 * HEAD[0] * HEAD[1]
    norms, angles = 2 * 65 * 4096, 4 * 8192 * 128
    assert report.basis is Basis.ENGINE
    assert report.inputs.weights_bytes == 32 * layer + head + embedding + norms + angles
    assert not any("not supported yet" in note for note in report.notes)


def test_where_no_kernel_multiplies_codes_the_plan_says_what_stores_them(
    published: Published,
) -> None:
    model = published("llama-3-8b")
    plain, int4 = (hal.plan(model, device="v100-32gb", quantization=q) for q in ("none", "int4"))
    (note,) = [n for n in int4.notes if n.startswith("linear runs reference_quantized")]
    assert "a byte stored for each code" in note
    assert int4.inputs.weights_bytes > 0.5 * plain.inputs.weights_bytes
    assert not any("reference_quantized" in note for note in plain.notes)


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_a_format_is_planned_as_its_kernels_store_it(name: str) -> None:
    scheme = planned_scheme(name)
    assert scheme is not None
    stored = QuantizedWeight(512, 1024, WEIGHT_FORMATS[name])
    assert scheme.num_bytes(512, 1024) == stored.num_bytes


def test_a_published_gptq_checkpoint_weighs_what_its_files_weigh(published: Published) -> None:
    # TheBloke/Llama-2-7B-GPTQ, 4 bit, groups of 128: 3.90 GB on disk.
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    report = hal.plan(published("llama-2-7b", quantization_config=gptq), device="rtx4090", ctx=16)
    assert report.inputs.weights_bytes == pytest.approx(3.90e9, rel=0.01)
    assert "not supported yet: a checkpoint quantized with gptq-int4" in report.notes


def gptq_tensors(shape: ModelShape) -> dict[str, torch.Tensor]:
    """What an exporter writes: packed values and zeros, scales, group indices, the rest as is."""
    tensors = {}
    for number, w in enumerate(shape.weights):
        for copy in range(w.count):
            name = f"{number}.{copy}"
            if w.role not in ("linear", "expert"):
                tensors[f"{name}.weight"] = torch.zeros(w.rows, w.columns, dtype=torch.float16)
                continue
            groups = w.columns // 32
            packed = torch.zeros(w.columns * w.rows // 8, dtype=torch.int32)
            tensors[f"{name}.qweight"] = packed
            tensors[f"{name}.qzeros"] = torch.zeros(groups * w.rows // 8, dtype=torch.int32)
            tensors[f"{name}.scales"] = torch.zeros(groups * w.rows, dtype=torch.float16)
            tensors[f"{name}.g_idx"] = torch.zeros(w.columns, dtype=torch.int32)
    return tensors


def test_headers_of_a_quantised_checkpoint_are_checked_in_bytes(published: Published) -> None:
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512}
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    folder = published("llama-2-7b", **sizes, **heads, quantization_config=gptq)
    tensors = gptq_tensors(hal.plan(folder, device="h100").model.shape)
    save_file(tensors, Path(folder) / "model.safetensors")
    assert not any("weight files" in note for note in hal.plan(folder, device="h100").notes)
    wrong = {k: v.float() if k.endswith(".weight") else v for k, v in tensors.items()}
    save_file(wrong, Path(folder) / "model.safetensors")
    (note,) = (n for n in hal.plan(folder, device="h100").notes if "weight files" in n)
    assert "bytes, config.json means" in note


def test_deepseek_v3_in_its_published_fp8(published: Published) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    report = hal.plan(published("deepseek-v3", quantization_config=fp8), device="8xh200")
    # 671 B in 8 bit; embeddings, head and routers stay in 16 bit.
    total = 8 * report.inputs.weights_bytes
    assert 671e9 < total < 700e9
    assert report.fits


@pytest.mark.parametrize("device", ["h100", "2xh100"])
@pytest.mark.parametrize("kv", ["fp8", "int8"])
def test_kv_types(published: Published, kv: str, device: str) -> None:
    model = published("llama-3-8b")  # head_dim 128: a scale adds 2 bytes to 128
    plain, small = (hal.plan(model, device=device, kv=k) for k in ("auto", kv))
    wanted = (0.5 + 2 / 256) * plain.inputs.kv_bytes_per_block
    assert small.inputs.kv_bytes_per_block == wanted
    assert small.notes == plain.notes


def test_a_cache_that_no_kernel_reads_natively_is_said_to_be_slow(published: Published) -> None:
    report = hal.plan(published("llama-3-8b"), device="v100-32gb", kv="fp8")
    assert any(n.startswith("attention runs reference_quantized") for n in report.notes)


def test_a_quantized_checkpoint_without_a_dtype_is_said_to_be_float32(published: Published) -> None:
    model = published(
        "gpt-oss-20b", torch_dtype=None, quantization_config={"quant_method": "mxfp4"}
    )
    report = hal.plan(model, device="h100")
    assert report.sized.resolved.dtype is DType.FLOAT32
    assert any(note.startswith("config.json names no dtype: float32") for note in report.notes)
