"""Kernels that work row by row: norms, activations, rotation, look-up."""

from __future__ import annotations

import pytest
import torch

from hal.conformance.limits import LIMITS, relative_l2
from hal.dtypes import DType
from hal.kernels.reference.elementwise import activate
from hal.opset import (
    gated_activation,
    gather_rows,
    layer_norm,
    plain_activation,
    qk_norm_rope,
    rms_norm,
)
from hal.opset.attention import RopeProblem
from hal.opset.elementwise import Activation
from hal.opset.norm import NormProblem

DTYPES = [DType.FLOAT32, DType.BFLOAT16]
TORCH = {DType.FLOAT32: torch.float32, DType.BFLOAT16: torch.bfloat16}
# 400 rows of 100 are enough work for the second thread to be woken.
ROWS = [(1, 1), (3, 16), (5, 33), (400, 100), (2, 896)]


def random(*shape: int, dtype: DType, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(TORCH[dtype])


def apart(x: torch.Tensor) -> torch.Tensor:
    """The same rows with poison between them."""
    wide = torch.full((x.shape[0], x.shape[1] + 7), float("nan"), dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return relative_l2(actual.double().numpy(), expected.numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("is_layer_norm", [True, False])
def test_norms(
    family: str, is_layer_norm: bool, has_residual: bool, shape: tuple[int, int], dtype: DType
) -> None:
    problem = NormProblem(hidden_size=shape[1], dtype=dtype)
    x, weight = apart(random(*shape, dtype=dtype) + 3), random(shape[1], dtype=dtype)
    bias = random(shape[1], dtype=dtype, seed=1)
    residual = apart(random(*shape, dtype=dtype, seed=2)) if has_residual else None
    y = x if residual is None else (x.float() + residual.float()).to(TORCH[dtype])
    out = apart(torch.empty_like(x))
    if is_layer_norm:
        norm = layer_norm.kernels[family].implementation(problem, None)
        norm(x, residual, weight, bias, 1e-5, out)
        centred = y.double() - y.double().mean(dim=-1, keepdim=True)
    else:
        norm = rms_norm.kernels[family].implementation(problem, None)
        norm(x, residual, weight, 1e-5, out)
        centred = y.double()
    scale = torch.rsqrt((centred**2).mean(dim=-1, keepdim=True) + 1e-5)
    expected = centred * scale * weight.double()
    expected = expected + bias.double() if is_layer_norm else expected
    assert error(out, expected) < LIMITS[dtype]
    assert residual is None or torch.equal(residual, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", list(Activation))
def test_activations(family: str, activation: Activation, dtype: DType) -> None:
    """From far negative to far positive, where careless exponentials overflow."""
    x = torch.linspace(-120, 120, 900).view(9, 100).to(TORCH[dtype])
    expected = activate(x.double(), activation)
    out = torch.empty_like(x)
    plain_activation.kernels[family].implementation(x, activation, out)
    # Rows far below zero are nothing but underflow: compare with the whole, not per row.
    assert error(out.view(1, -1), expected.view(1, -1)) < LIMITS[dtype]
    up = random(9, 100, dtype=dtype)
    gated_activation.kernels[family].implementation(torch.cat([x, up], dim=1), activation, out)
    gated = expected * up.double()
    assert error(out.view(1, -1), gated.view(1, -1)) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize("dims", [(64, 64), (80, 32), (128, 128), (6, 2), (16, 0)], ids=str)
def test_qk_norm_rope(family: str, dims: tuple[int, int], has_norm: bool, dtype: DType) -> None:
    head_dim, rotary_dim = dims
    problem = RopeProblem(
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        has_norm=has_norm,
        dtype=dtype,
    )
    qkv = apart(random(50, 8 * head_dim, dtype=dtype))
    positions = torch.arange(50, dtype=torch.int32).flip(0) * 3
    angles = torch.rand(150, rotary_dim // 2) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=1)
    weights = [random(head_dim, dtype=dtype, seed=s) if has_norm else None for s in (1, 2)]
    expected = rotated(qkv, problem, cos_sin[positions.long()], weights)
    rotate = qk_norm_rope.kernels[family].implementation
    rotate(qkv, problem, positions, cos_sin, weights[0], weights[1], 1e-6)
    assert error(qkv, expected) < LIMITS[dtype]


def rotated(
    qkv: torch.Tensor,
    problem: RopeProblem,
    cos_sin: torch.Tensor,
    weights: list[torch.Tensor | None],
) -> torch.Tensor:
    """In float64, all heads of a token side by side."""
    heads = qkv.double().reshape(len(qkv), -1, problem.head_dim).clone()
    half = problem.rotary_dim // 2
    cos, sin = cos_sin.double().unsqueeze(1).split(half, dim=-1) if half else (0, 0)
    for side, weight in ((slice(0, 4), weights[0]), (slice(4, 6), weights[1])):
        x = heads[:, side]
        if weight is not None:
            x = x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6) * weight.double()
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        parts = [first * cos - second * sin, second * cos + first * sin, rest]
        heads[:, side] = torch.cat(parts, dim=-1)
    return heads.view(len(qkv), -1)


def test_gather_rows(family: str) -> None:
    x = apart(random(9, 20, dtype=DType.BFLOAT16))
    index = torch.tensor([8, 0, 8, 3] * 6, dtype=torch.int32)
    out = apart(torch.empty(24, 20, dtype=torch.bfloat16))
    gather_rows.kernels[family].implementation(x, index, out)
    assert torch.equal(out, x[index.long()])
