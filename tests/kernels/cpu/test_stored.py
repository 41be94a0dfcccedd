"""Bytes that a family gives away: all it has, the same for the same weight, enough to run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hal.conformance.stage import Stage
from hal.dtypes import DType
from hal.kernels.cpu.linear import PackedLinear, PackedUp
from hal.kernels.cpu.vocab import PackedVocab
from hal.opset.elementwise import Activation
from hal.opset.linear import LinearFamily, LinearProblem
from hal.opset.vocab import VocabFamily, VocabProblem
from hal.weights import WEIGHT_FORMATS, LogicalWeight, WeightFormat

FORMATS = [None, *WEIGHT_FORMATS.values()]
SHAPES = [(1, 3), (64, 64), (64, 128), (96, 33), (70, 1027)]


def linear(rows: int, columns: int, weights: WeightFormat | None, stage: Stage) -> PackedLinear:
    return PackedLinear(problem(rows, columns, weights), stage.binder)


def gated(rows: int, columns: int, weights: WeightFormat | None, stage: Stage) -> PackedUp:
    rows = -(-rows // 32) * 32
    return PackedUp(problem(rows, columns, weights), stage.binder, Activation.SILU, is_gated=True)


def vocab(rows: int, columns: int, weights: WeightFormat | None, stage: Stage) -> PackedVocab:
    return PackedVocab(
        VocabProblem(
            vocab_size=rows,
            hidden_size=columns,
            dtype=DType.BFLOAT16,
            embeds=True,
            makes_logits=True,
            weights=weights,
        ),
        stage.binder,
    )


def problem(rows: int, columns: int, weights: WeightFormat | None) -> LinearProblem:
    return LinearProblem(
        in_features=columns,
        out_features=rows,
        dtype=DType.BFLOAT16,
        has_bias=True,
        weights=weights,
    )


def load(family: LinearFamily | VocabFamily, stage: Stage, *, fill: int) -> None:
    """Into memory that held `fill` before."""
    original = stage.device.empty

    def used(*arguments: Any) -> Any:
        memory = original(*arguments)
        assert isinstance(memory, torch.Tensor)
        memory.view(-1).view(torch.uint8).fill_(fill)
        return memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.device, "empty", used)
        family.allocate(stage.device)
    p = family.problem
    rows, columns = (
        (p.out_features, p.in_features)
        if isinstance(p, LinearProblem)
        else (p.vocab_size, p.hidden_size)
    )
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(rows, columns, generator=generator).bfloat16()
    family.load(0, LogicalWeight(values=values, dtype=DType.BFLOAT16))
    if isinstance(family, LinearFamily):
        family.load_bias(0, torch.randn(rows, generator=generator).bfloat16())


@pytest.mark.parametrize("weights", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", [linear, gated, vocab])
def test_equal_weights_are_equal_bytes(
    stage: Stage, make: Callable[..., Any], shape: tuple[int, int], weights: WeightFormat | None
) -> None:
    """Whatever was in the memory before: two processes write the same entry."""
    forms = []
    for fill in (0, 0xAB):
        family = make(*shape, weights, stage)
        load(family, stage, fill=fill)
        forms.append(family.stored())
        assert forms[-1].num_bytes == family.num_bytes
    one, two = forms
    assert one.layout == two.layout
    assert list(map(bytes, one.parts)) == list(map(bytes, two.parts))


@pytest.mark.parametrize("weights", FORMATS, ids=str)
def test_bytes_given_back_load_the_family(stage: Stage, weights: WeightFormat | None) -> None:
    one, two = (gated(96, 33, weights, stage) for _ in range(2))
    stage.binder.arena.allocate(stage.device)
    load(one, stage, fill=0)
    two.allocate(stage.device)
    for target, source in zip(two.stored().parts, one.stored().parts, strict=True):
        target[:] = source
    x, outs = torch.randn(5, 33).bfloat16(), torch.empty(2, 5, 48).bfloat16()
    for family, out in zip((one, two), outs, strict=True):
        family(x, out)
    assert torch.equal(outs[0], outs[1])
    assert outs.isfinite().all()


def test_layouts_differ_where_the_bytes_would(stage: Stage) -> None:
    makers = (linear, gated, vocab)
    families = [make(64, 128, w, stage) for make in makers for w in FORMATS]
    for family in families:
        family.allocate(stage.device)
    layouts = [family.stored().layout for family in families]
    assert len(set(layouts)) == len(layouts)
