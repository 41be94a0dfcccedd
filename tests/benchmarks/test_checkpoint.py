"""Reading checkpoints without torch, and the order in which llama.cpp wants them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peers import checkpoint, gguf_export
from safetensors.torch import load_file

TINY = Path(__file__).resolve().parents[2] / "hal" / "tiny"


def test_geometry_of_hal_tiny() -> None:
    geometry = checkpoint.read_geometry(TINY)
    assert geometry.model_type == "llama" and geometry.is_tied
    assert geometry.embedding_values == 2048 * 256
    assert geometry.kv_bytes(16) == 2 * 6 * 2 * 64 * 2
    assert geometry.kv_bytes(8) == geometry.kv_bytes(16) // 2


def test_bit_patterns_are_those_of_safetensors() -> None:
    expected = load_file(TINY / "model.safetensors")
    found = dict(checkpoint.read_bfloat16(TINY))
    assert found.keys() == expected.keys() == checkpoint.stored_values(TINY).keys()
    for name, tensor in expected.items():
        bits = tensor.view(torch.uint16).numpy()
        assert np.array_equal(found[name], bits), name
        assert checkpoint.stored_values(TINY)[name] == tensor.numel()


def test_bfloat16_widens_to_float32_exactly() -> None:
    values = torch.tensor([1.0, -2.5, 3e-39, 1e38], dtype=torch.bfloat16)
    widened = gguf_export.as_float32(values.view(torch.uint16).numpy())
    assert widened.tolist() == values.float().tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.11.self_attn.q_proj.bias", "blk.11.attn_q.bias"),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight"),
    ],
)
def test_gguf_names(name: str, expected: str) -> None:
    assert gguf_export.gguf_name(name) == expected


def test_rotary_halves_become_pairs_in_each_head() -> None:
    rows = np.arange(8)[:, None] * np.ones((1, 3), int)
    assert gguf_export.interleaved(rows, num_heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
