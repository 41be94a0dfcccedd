"""KV specs: bytes per token, and layers that share block tables."""

from __future__ import annotations

from dataclasses import replace

from hal.dtypes import DType
from hal.kv import KVKind, KVSpec, group_layers

# Llama-3-8B: 8 of 32 heads are cached.
FULL = KVSpec(kind=KVKind.FULL, num_kv_heads=8, head_dim=128, dtype=DType.BFLOAT16)


def test_bytes_per_token_count_cached_heads_only() -> None:
    assert FULL.bytes_per_token == 2 * 8 * 128 * 2
    (group,) = group_layers([FULL] * 32)
    # The published figure: 128 KiB per token, 2 MiB per block of 16.
    assert group.bytes_per_block(1) == 128 * 1024
    assert group.bytes_per_block(16) == 2 * 1024 * 1024


def test_smaller_elements_take_fewer_bytes() -> None:
    assert replace(FULL, dtype=DType.FLOAT8_E4M3FN).bytes_per_token == 2 * 8 * (128 + 2)
    assert replace(FULL, dtype=DType.INT8).bytes_per_token == 2 * 8 * (128 + 2)


def test_equal_specs_share_a_group_and_others_do_not() -> None:
    sliding = replace(FULL, kind=KVKind.SLIDING, window=4096)
    groups = group_layers([FULL, sliding, FULL, sliding, replace(sliding, window=512)])
    assert [group.layers for group in groups] == [(0, 2), (1, 3), (4,)]
    assert groups[1].spec.window == 4096
