"""The sites that are compiled: shapes of an 8B model, launched as the engine launches them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hal.dtypes import DType
from hal.kernels.triton.verify.attention_sites import attention_block_sites, attention_sites
from hal.kernels.triton.verify.linear_sites import linear_sites
from hal.kernels.triton.verify.moe_sites import moe_sites
from hal.kernels.triton.verify.sampling_sites import sampling_sites
from hal.kernels.triton.verify.site import Call, Site
from hal.opset.attention import RopeProblem
from hal.opset.elementwise import Activation, ActivationProblem, ElementwiseProblem
from hal.opset.indexing import GatherProblem, TokenProblem
from hal.opset.norm import NormProblem

NUM_TOKENS = 8
HIDDEN_SIZE = 4096
INTERMEDIATE_SIZE = 14336
WIDEST_SIZE = 16384


def all_sites() -> Iterator[Site]:
    for dtype in (DType.BFLOAT16, DType.FLOAT32):
        yield from _norm_sites(dtype)
        yield from _elementwise_sites(dtype)
        yield from _rope_sites(dtype)
    yield from _token_sites()
    yield from sampling_sites()
    yield from linear_sites()
    yield from moe_sites()
    for dtype in (DType.BFLOAT16, DType.FLOAT16):
        yield from attention_sites(dtype)
    yield from attention_block_sites()


def _rows(width: int, dtype: DType, num_rows: int = NUM_TOKENS) -> torch.Tensor:
    found = getattr(torch, dtype.label)
    return torch.empty((num_rows, width), dtype=found)


def _norm_sites(dtype: DType) -> Iterator[Site]:
    x, vector = _rows(HIDDEN_SIZE, dtype), _rows(HIDDEN_SIZE, dtype, 1)[0]
    problem = NormProblem(hidden_size=HIDDEN_SIZE, dtype=dtype)
    calls: dict[tuple[str, str], Call] = {
        ("rms_norm", "residual"): lambda norm: norm(x, x, vector, 1e-5, x),
        ("rms_norm", "plain"): lambda norm: norm(x, None, vector, 1e-5, x),
        ("layer_norm", "residual"): lambda norm: norm(x, x, vector, vector, 1e-5, x),
    }
    for (op, name), call in calls.items():
        yield Site(op=op, name=f"{name}-{dtype}", problem=problem, call=call)
    widest = NormProblem(hidden_size=WIDEST_SIZE, dtype=dtype)
    row, weight = _rows(WIDEST_SIZE, dtype), _rows(WIDEST_SIZE, dtype, 1)[0]
    yield Site(
        op="rms_norm",
        name=f"widest-{dtype}",
        problem=widest,
        call=lambda norm: norm(row, row, weight, 1e-5, row),
    )


def _elementwise_sites(dtype: DType) -> Iterator[Site]:
    wide, out = _rows(2 * INTERMEDIATE_SIZE, dtype), _rows(INTERMEDIATE_SIZE, dtype)
    for activation in Activation if dtype is DType.BFLOAT16 else (Activation.SILU,):
        problem = ActivationProblem(width=INTERMEDIATE_SIZE, activation=activation, dtype=dtype)
        yield Site(
            op="gated_activation",
            name=f"{activation}-{dtype}",
            problem=problem,
            call=partial(_call_with, (wide, activation, out)),
        )
    yield Site(
        op="plain_activation",
        name=f"gelu-{dtype}",
        problem=ActivationProblem(width=INTERMEDIATE_SIZE, activation=Activation.GELU, dtype=dtype),
        call=lambda bound: bound(out, Activation.GELU, out),
    )
    x = _rows(HIDDEN_SIZE, dtype)
    yield Site(
        op="add",
        name=str(dtype),
        problem=ElementwiseProblem(width=HIDDEN_SIZE, dtype=dtype),
        call=lambda bound: bound(x, x, x),
    )
    index = torch.empty(NUM_TOKENS, dtype=torch.int32)
    yield Site(
        op="gather_rows",
        name=str(dtype),
        problem=GatherProblem(width=HIDDEN_SIZE, dtype=dtype),
        call=lambda bound: bound(x, index, x),
    )


def _token_sites() -> Iterator[Site]:
    ids = torch.empty(NUM_TOKENS, dtype=torch.int32)
    calls: dict[str, Call] = {
        "take_tokens": lambda bound: bound(ids, ids, ids, ids),
        "keep_tokens": lambda bound: bound(ids, ids, ids),
    }
    for op, call in calls.items():
        # Slots are anywhere: each token is read and written alone.
        yield Site(op=op, name="int32", problem=TokenProblem(), call=call, reads_wide=False)


def _rope_sites(dtype: DType) -> Iterator[Site]:
    for has_norm in (False, True):
        problem = RopeProblem(
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            rotary_dim=128,
            has_norm=has_norm,
            dtype=dtype,
        )
        qkv, table = _rows(48 * 128, dtype), torch.empty((4096, 128))
        weight = _rows(128, dtype, 1)[0] if has_norm else None
        positions = torch.empty(NUM_TOKENS, dtype=torch.int32)
        arguments = (qkv, problem, positions, table, weight, weight, 1e-6)
        yield Site(
            op="qk_norm_rope",
            name=f"{'norm' if has_norm else 'plain'}-{dtype}",
            problem=problem,
            call=partial(_call_with, arguments),
        )


def _call_with(arguments: tuple[object, ...], bound: Any) -> None:
    bound(*arguments)
