"""Attention as an engine plans it: long and short decodes, or a prompt, over a paged cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from hal.dtypes import DType
from hal.kernels.triton.attention_block import TritonAttentionBlock
from hal.kernels.triton.verify.site import Site
from hal.kv import KV_FORMATS
from hal.opset.attention import (
    AttentionFamily,
    AttentionMeta,
    AttentionProblem,
    AttentionSpec,
    RopeProblem,
)
from hal.opset.block import AttentionBlockProblem, AttentionWeights

_BLOCK_SIZES = (16, 32, 64)
_NUM_BLOCKS = 64  # of the cache, which nobody reads


@dataclass(frozen=True, slots=True)
class _Model:
    """The heads of a published model."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    softcap: float | None = None


_MODELS = (
    _Model("llama-8b", 32, 8, 128),
    _Model("llama-1b", 32, 8, 64),
    _Model("gemma2-9b", 16, 8, 256, window=4096, softcap=50.0),
)

_STEPS = (("prefill", (512,), "large"), ("decode", (1, 1), "any"))


def attention_sites(dtype: DType) -> Iterator[Site]:
    """Every block size for decodes of the first model; else the first. A cache of codes for the
    first model."""
    if dtype is DType.BFLOAT16:
        for name, kv_dtype in KV_FORMATS.items():
            problem = _problem(_MODELS[0], dtype, _BLOCK_SIZES[0], kv_dtype)
            for what, q_lens, multiplies in _STEPS:
                yield Site(
                    op="attention",
                    name=f"{what}-{_MODELS[0].name}-kv-{name}-{dtype}",
                    problem=problem,
                    call=partial(_attend, problem, q_lens),
                    multiplies=multiplies,
                )
    for model in _MODELS if dtype is DType.BFLOAT16 else _MODELS[:1]:
        for block_size in (
            _BLOCK_SIZES if model is _MODELS[0] and dtype is DType.BFLOAT16 else _BLOCK_SIZES[:1]
        ):
            problem = _problem(model, dtype, block_size)
            name = f"{model.name}-b{block_size}-{dtype}"
            prompt = Site(
                op="attention",
                name=f"prefill-{name}",
                problem=problem,
                call=partial(_attend, problem, (512,)),
                multiplies="large",
            )
            if block_size == _BLOCK_SIZES[0]:
                yield prompt
            yield replace(
                prompt,
                name=f"decode-{name}",
                call=partial(_attend, problem, (1, 1)),
                multiplies="any",
            )


def attention_block_sites() -> Iterator[Site]:
    """What lies between the products of a decode step, rotated with and without a norm."""
    dtype = DType.BFLOAT16
    for name, kv_dtype in (("plain", None), *KV_FORMATS.items()):
        attention = _problem(_MODELS[0], dtype, _BLOCK_SIZES[0], kv_dtype)
        problem = AttentionBlockProblem(
            hidden_size=attention.num_heads * attention.head_dim,
            attention=attention,
            rope=RopeProblem(
                num_heads=attention.num_heads,
                num_kv_heads=attention.num_kv_heads,
                head_dim=attention.head_dim,
                rotary_dim=attention.head_dim,
                has_norm=kv_dtype is None,
                dtype=dtype,
            ),
            has_qkv_bias=False,
            has_output_bias=False,
        )
        yield Site(
            op="attention_block",
            name=f"{_MODELS[0].name}-kv-{name}-{dtype}",
            problem=problem,
            call=partial(_between, problem),
            multiplies="any",
        )


def _between(p: AttentionBlockProblem, block: TritonAttentionBlock) -> None:
    inner = p.attention
    meta = _meta(inner, (1, 1), 8192)
    block.family.plan(meta)
    width = inner.num_heads * inner.head_dim
    qkv, heads = (torch.empty((2, n), dtype=torch.bfloat16) for n in (inner.qkv_width, width))
    norm = torch.empty(inner.head_dim, dtype=torch.bfloat16) if p.rope.has_norm else None
    table, positions = torch.empty((8192, inner.head_dim)), torch.empty(2, dtype=torch.int32)
    weights = AttentionWeights(cos_sin=table, q_norm=norm, k_norm=norm, norm_eps=1e-6)
    kv = torch.empty(
        block.family.kv_shape(_NUM_BLOCKS), dtype=getattr(torch, inner.kv_storage.label)
    )
    block.between(qkv, positions, kv, weights, heads)


def _problem(
    model: _Model, dtype: DType, block_size: int, kv_dtype: DType | None = None
) -> AttentionProblem:
    return AttentionProblem(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=dtype,
        block_size=block_size,
        spec=AttentionSpec(
            scale=model.head_dim**-0.5,
            window=model.window,
            softcap=model.softcap,
            kv_dtype=kv_dtype,
        ),
    )


def _attend(p: AttentionProblem, q_lens: tuple[int, ...], family: AttentionFamily) -> None:
    """Contexts so long that decodes are split and merged."""
    meta = _meta(p, q_lens, 8192)
    found = getattr(torch, p.dtype.label)
    qkv = torch.empty((meta.num_tokens, p.qkv_width), dtype=found)
    out = torch.empty((meta.num_tokens, p.num_heads * p.head_dim), dtype=found)
    kv = torch.empty(family.kv_shape(_NUM_BLOCKS), dtype=getattr(torch, p.kv_storage.label))
    family.plan(meta)
    family.write_kv(qkv, kv)
    family.attend(qkv, kv, out)


def _meta(p: AttentionProblem, q_lens: tuple[int, ...], seq_len: int) -> AttentionMeta:
    starts = np.cumsum([0, *q_lens]).astype(np.int32)
    lens = np.full(len(q_lens), seq_len, dtype=np.int32)
    table = np.zeros((len(q_lens), seq_len // p.block_size), dtype=np.int32)
    slots = np.zeros(int(starts[-1]), dtype=np.int64)
    return AttentionMeta(
        cu_seqlens_q=starts,
        seq_lens=lens,
        block_table=table,
        slot_mapping=slots,
        cu_seqlens_q_device=torch.from_numpy(starts),
        seq_lens_device=torch.from_numpy(lens),
        block_table_device=torch.from_numpy(table),
        slot_mapping_device=torch.from_numpy(slots),
    )
