"""A norm in front of a product, done when rows are needed: the bits of one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hal.conformance.stage import Stage, logical
from hal.dtypes import DType
from hal.kernels.cpu.linear import PackedLinear
from hal.kernels.cpu.norm import NativeLayerNorm, NativeRmsNorm
from hal.kernels.cpu.normed_product import NormedProduct
from hal.kernels.reference.block import BlockNorm
from hal.kernels.reference.norm import rms_norm_reference
from hal.opset.linear import LinearProblem
from hal.opset.norm import NormInput, NormKind, NormProblem
from hal.weights import WEIGHT_FORMATS

K, N = 300, 77
NUM_TOKENS = (1, 2, 7, 16, 17, 50, 130)
DTYPES = {torch.bfloat16: DType.BFLOAT16, torch.float32: DType.FLOAT32}


def product(stage: Stage, name: str, dtype: torch.dtype) -> PackedLinear:
    problem = LinearProblem(
        in_features=K, out_features=N, dtype=DTYPES[dtype], weights=WEIGHT_FORMATS.get(name)
    )
    family = PackedLinear(problem, stage.binder)
    family.allocate(stage.device)
    values = torch.from_numpy(stage.rng.standard_normal((N, K))).to(dtype)
    family.load(0, logical(values, DTYPES[dtype]))
    stage.binder.arena.allocate(stage.device)
    return family


def norm_input(stage: Stage, num_tokens: int, dtype: torch.dtype, kind: NormKind) -> NormInput:
    def random(*shape: int) -> torch.Tensor:
        return torch.from_numpy(stage.rng.standard_normal(shape)).to(dtype)

    return NormInput(
        values=random(num_tokens, K),
        residual=random(num_tokens, K),
        weight=random(K),
        bias=random(K) if kind is NormKind.LAYER else None,
        eps=1e-5,
    )


def block_norm(stage: Stage, kind: NormKind, dtype: torch.dtype) -> BlockNorm:
    return BlockNorm(kind, NormProblem(hidden_size=K, dtype=DTYPES[dtype]), stage.binder)


@pytest.mark.parametrize("num_threads", [1, 2, 7])
@pytest.mark.parametrize("kind", NormKind)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["none", "int8", "int4", "int4-g64-asym", "fp8", "int4-a16"])
def test_bits_are_those_of_the_norm_and_the_product(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dtype: torch.dtype,
    kind: NormKind,
    num_threads: int,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    family, norm = product(stage, name, dtype), block_norm(stage, kind, dtype)
    assert isinstance(norm.kernel, NativeRmsNorm | NativeLayerNorm)
    for num_tokens in NUM_TOKENS:
        given = norm_input(stage, num_tokens, dtype, kind)
        assert isinstance(given.residual, torch.Tensor)
        apart = replace(given, residual=given.residual.clone())
        x = torch.full((2, num_tokens, K), torch.nan).to(dtype)
        out = torch.full((2, num_tokens, N), torch.nan).to(dtype)
        norm(apart, x[0])
        family(x[0], out[0])
        family.after_norm(given, x[1], out[1])
        assert torch.equal(x[0], x[1]), num_tokens
        assert torch.equal(out[0], out[1]), num_tokens
        assert torch.equal(given.residual, torch.as_tensor(apart.residual)), num_tokens


def test_a_norm_chosen_by_name_runs_as_it_is(stage: Stage) -> None:
    family = product(stage, "int8", torch.bfloat16)
    norm = block_norm(stage, NormKind.RMS, torch.bfloat16)
    calls: list[tuple[Any, ...]] = []

    def reference(*arguments: Any) -> None:
        calls.append(arguments)
        rms_norm_reference(*arguments)

    norm.kernel = reference
    given = norm_input(stage, 3, torch.bfloat16, NormKind.RMS)
    x, out = torch.empty(3, K, dtype=torch.bfloat16), torch.empty(3, N, dtype=torch.bfloat16)
    NormedProduct(norm, family)(x, given, out)
    assert len(calls) == 1 and not out.isnan().any()
