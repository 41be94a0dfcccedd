"""The fused attention_block against the composition, which is made of the same kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hal.binding import Arena, Binder
from hal.conformance.block_cases import AttentionBlockCase, block_cases
from hal.conformance.paged import PagedCache, SequenceStep
from hal.conformance.stage import MAX_TOKENS, Stage
from hal.dtypes import DType
from hal.kernels.cpu.attention import NativeAttention
from hal.kernels.cpu.attention_block import FusedAttentionBlock
from hal.kernels.reference.block import ComposedAttentionBlock
from hal.opset import attention_block
from hal.opset.block import AttentionBlockProblem, AttentionWeights
from hal.select import SelectionPolicy, Selector

CASES = {
    f"{case.name}-{case.dtype}": case
    for case in block_cases()
    if isinstance(case, AttentionBlockCase) and case.dtype is not DType.FLOAT16
}
STEPS = [SequenceStep(40, 40), SequenceStep(1, 30)]
MAX_POSITIONS = 64


def with_codes(problem: AttentionBlockProblem) -> AttentionBlockProblem:
    spec = replace(problem.attention.spec, kv_dtype=DType.INT8)
    return replace(problem, attention=replace(problem.attention, spec=spec))


PROBLEMS = {name: case.problem for name, case in CASES.items()} | {
    f"{name}-codes": with_codes(case.problem)
    for name, case in CASES.items()
    if case.dtype is DType.BFLOAT16
}


def vectors(problem: AttentionBlockProblem) -> AttentionWeights:
    rope = problem.rope
    dtype = getattr(torch, rope.dtype.label)
    table = torch.randn(MAX_POSITIONS, rope.rotary_dim) if rope.rotary_dim else None
    norms = [torch.rand(rope.head_dim).to(dtype) if rope.has_norm else None for _ in range(2)]
    return AttentionWeights(cos_sin=table, q_norm=norms[0], k_norm=norms[1], norm_eps=1e-6)


@pytest.mark.parametrize("num_threads", [1, 2, 7])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_same_bits_as_one_call_after_the_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, problem: AttentionBlockProblem, num_threads: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    inner, weights = problem.attention, vectors(problem)
    dtype = getattr(torch, inner.dtype.label)
    rows = torch.randn(41, inner.qkv_width).to(dtype)
    positions = torch.tensor([*range(40), 29], dtype=torch.int32)
    results = []
    for block in (
        FusedAttentionBlock(problem, stage.binder),
        ComposedAttentionBlock(problem, stage.binder),
    ):
        assert isinstance(block.family, NativeAttention)
        stage.rng = np.random.default_rng(3)  # the same blocks
        cache = PagedCache(stage, block.family, inner, [40, 30])
        cache.plan(STEPS, [0, 1])
        qkv = rows.clone()
        heads = torch.full((41, inner.num_heads * inner.head_dim), torch.nan).to(dtype)
        block.between(qkv, positions, cache.kv, weights, heads)
        assert isinstance(cache.kv, torch.Tensor)
        results.append((qkv, heads[:40], cache.kv.view(torch.int8)))
    for fused, composed in zip(*results, strict=True):
        assert torch.equal(fused.view(torch.int8), composed.view(torch.int8))


@pytest.mark.parametrize("override", [{"attention": "sdpa"}, {"qk_norm_rope": "reference"}])
def test_another_kernel_that_was_asked_for_runs(stage: Stage, override: dict[str, str]) -> None:
    """Asked for by name, and still right."""
    case = CASES["llama-bfloat16"]
    selector = Selector(stage.device.capabilities, SelectionPolicy(overrides=override))
    stage.binder = Binder(selector, Arena(MAX_TOKENS), stage.device)
    checks = list(case.run(attention_block.kernels["avx512_bf16"], stage))
    assert checks and all(check.is_ok for check in checks)
    chosen = {s.op: s.kernel.name for s in selector.report()}
    assert override.items() <= chosen.items()
