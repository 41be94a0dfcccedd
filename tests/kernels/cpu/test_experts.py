"""The experts of a layer in one native call: its bits, its costs, and the bytes it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hal.conformance.stage import Stage, logical
from hal.dtypes import DType
from hal.kernels.cpu import native
from hal.kernels.cpu.experts import FusedMoeBlock, PackedExperts
from hal.kernels.reference.tensors import as_torch
from hal.opset.elementwise import Activation
from hal.opset.moe import GroupedLinearFamily, GroupedLinearProblem, MoeBlockProblem
from hal.opset.vocab import VocabFamily
from hal.weights import WEIGHT_FORMATS, WeightFormat

NAMES = ["none", "int8", "int4", "int4-asym", "fp8", "int4-g128-a16"]
FORMATS = [WEIGHT_FORMATS.get(name) for name in NAMES]
HIDDEN, WIDTH, EXPERTS, TOP_K = 96, 160, 6, 2


@pytest.fixture(params=FORMATS, ids=NAMES)
def weights(request: pytest.FixtureRequest) -> WeightFormat | None:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_block(
    stage: Stage,
    weights: WeightFormat | None,
    hidden: int = HIDDEN,
    width: int = WIDTH,
    num_experts: int = EXPERTS,
) -> FusedMoeBlock:
    problem = MoeBlockProblem(
        num_experts=num_experts,
        top_k=TOP_K,
        hidden_size=hidden,
        intermediate_size=width,
        activation=Activation.SILU,
        norm_topk_prob=True,
        dtype=DType.BFLOAT16,
        weights=weights,
    )
    if weights is not None and weights.keeps_activations and native.decoded_unavailable():
        pytest.skip(str(native.decoded_unavailable()))
    block = FusedMoeBlock(problem, stage.binder)
    stage.binder.arena.allocate(stage.device)
    shapes = (
        (num_experts, hidden),
        (num_experts * 2 * width, hidden),
        (num_experts * hidden, width),
    )
    families: tuple[VocabFamily | GroupedLinearFamily, ...] = (block.router, block.up, block.down)
    for family, shape in zip(families, shapes, strict=True):
        family.allocate(stage.device)
        family.load(0, logical(stage.weight(shape, DType.BFLOAT16, 0.1), DType.BFLOAT16))
    return block


def run(block: FusedMoeBlock, x: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(x, float("nan"))
    block(x, out)
    return out


@pytest.mark.usefixtures("threads")
def test_bits_do_not_depend_on_the_number_of_threads(
    stage: Stage, weights: WeightFormat | None
) -> None:
    block = make_block(stage, weights)
    x = torch.randn(300, HIDDEN).bfloat16()
    outs = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        outs.append(run(block, x))
    assert outs[0].isfinite().all()
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


def test_more_rows_of_an_expert_than_one_product_takes(
    stage: Stage, weights: WeightFormat | None
) -> None:
    """512 tokens meet two of three experts each; one product takes at most 240 of this size."""
    block = make_block(stage, weights, hidden=2100, width=48, num_experts=3)
    x = torch.randn(512, 2100).bfloat16()
    out = run(block, x)
    offsets = stage.binder.arena.buffer("expert_offsets", (), DType.INT32, 4).rows(4)
    assert int(as_torch(offsets).diff().max()) > 240
    for token in (0, 1, 255, 256, 511):
        assert torch.equal(out[token : token + 1], run(block, x[token : token + 1]))


def test_rows_may_be_apart(stage: Stage, weights: WeightFormat | None) -> None:
    block = make_block(stage, weights)
    x = torch.randn(9, HIDDEN).bfloat16()
    wide_x, wide_out = torch.zeros(2, 9, HIDDEN + 32, dtype=torch.bfloat16)
    wide_x[:, :HIDDEN] = x
    block(wide_x[:, :HIDDEN], wide_out[:, :HIDDEN])
    assert torch.equal(wide_out[:, :HIDDEN], run(block, x))
    assert not wide_out[:, HIDDEN:].any()


def test_a_token_that_is_not_finite_costs_only_itself(
    stage: Stage, weights: WeightFormat | None
) -> None:
    block = make_block(stage, weights)
    x = torch.randn(7, HIDDEN).bfloat16()
    good = run(block, x)
    x[3, 5] = float("inf")
    out = run(block, x)
    assert out[3].isnan().all()
    assert torch.equal(out[[0, 1, 2, 4, 5, 6]], good[[0, 1, 2, 4, 5, 6]])


def test_a_warm_step_takes_no_memory(
    request: pytest.FixtureRequest, stage: Stage, weights: WeightFormat | None
) -> None:
    if request.config.getoption("--native-module"):
        pytest.skip("with sanitizers, scratch is allocated to the byte at every call")
    block = make_block(stage, weights)
    x = torch.randn(65, HIDDEN).bfloat16()
    run(block, x)
    before = native.load().num_scratch_allocations()
    for num_tokens in (65, 1, 33):
        run(block, x[:num_tokens])
    assert native.load().num_scratch_allocations() == before


def test_one_token_costs_two_barriers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up and down; a small router, the choice and the sum are done by the caller alone."""
    block = make_block(stage, WEIGHT_FORMATS["int8"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = torch.randn(1, HIDDEN).bfloat16()
    before = native.load().num_barriers()
    run(block, x)
    assert native.load().num_barriers() - before == 2


def experts(stage: Stage, weights: WeightFormat | None, *, is_gated: bool) -> PackedExperts:
    problem = GroupedLinearProblem(
        num_experts=3, in_features=33, out_features=96, dtype=DType.BFLOAT16, weights=weights
    )
    return PackedExperts(problem, stage.binder, is_gated=is_gated)


def test_bytes_given_back_load_the_family(stage: Stage, weights: WeightFormat | None) -> None:
    one, two = (experts(stage, weights, is_gated=False) for _ in range(2))
    values = torch.randn(3 * 96, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
    for family in (one, two):
        family.allocate(stage.device)
    one.load(0, logical(values, DType.BFLOAT16))
    source, target = one.stored(), two.stored()
    assert source.num_bytes == one.num_bytes
    assert source.layout == target.layout
    for to, part in zip(target.parts, source.parts, strict=True):
        to[:] = part
    offsets = torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    x, outs = torch.randn(7, 33).bfloat16(), torch.empty(2, 7, 96).bfloat16()
    for family, out in zip((one, two), outs, strict=True):
        family(x, offsets, out)
    assert torch.equal(outs[0], outs[1])
    assert outs.isfinite().all()


def test_layouts_differ_where_the_bytes_would(stage: Stage) -> None:
    families = [experts(stage, w, is_gated=g) for w in FORMATS for g in (False, True)]
    for family in families:
        family.allocate(stage.device)
    layouts = {family.stored().layout for family in families}
    assert len(layouts) == len(families)
