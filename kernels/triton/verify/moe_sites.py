"""The experts of a layer, of a published size: few tokens of a decode, and a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hal.dtypes import DType
from hal.kernels.triton.verify.site import Site
from hal.opset.moe import CombineProblem, GroupedLinearFamily, GroupedLinearProblem, RouteProblem
from hal.weights import WEIGHT_FORMATS

# qwen3-30b-a3b: what an expert reads, and its gate and up rows.
_NUM_EXPERTS, _TOP_K = 128, 8
_HIDDEN_SIZE, _UP_SIZE = 2048, 1536
# Those that are compiled to programs of their own.
_FORMATS = ("none", "int8", "fp8", "int4", "int4-g128-asym-a16")
_NUM_ROWS = {"small": 64, "large": 4096}
_NUM_TOKENS = 8


def moe_sites() -> Iterator[Site]:
    for name in _FORMATS:
        weights = WEIGHT_FORMATS.get(name)
        problem = GroupedLinearProblem(
            num_experts=_NUM_EXPERTS,
            in_features=_HIDDEN_SIZE,
            out_features=_UP_SIZE,
            dtype=DType.BFLOAT16,
            weights=weights,
            top_k=_TOP_K,
        )
        is_rounded = weights is not None and not weights.keeps_activations
        for shape_class, num_rows in _NUM_ROWS.items():
            kind = "any" if shape_class == "small" else "large"
            yield Site(
                op="grouped_linear",
                name=f"{name}-{shape_class}",
                problem=problem,
                call=partial(_multiply, num_rows),
                multiplies=f"int8_{kind}" if is_rounded else kind,
            )
    yield Site(
        op="route_experts",
        name=f"{_TOP_K}-of-{_NUM_EXPERTS}",
        problem=RouteProblem(num_experts=_NUM_EXPERTS, top_k=_TOP_K),
        call=_route,
        reads_wide=False,  # one logit a thread, and ids in steps of all threads
    )
    yield Site(
        op="combine_experts",
        name="bfloat16",
        problem=CombineProblem(top_k=_TOP_K, width=_HIDDEN_SIZE, dtype=DType.BFLOAT16),
        call=_combine,
    )


def _ids(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int32)


def _multiply(num_rows: int, family: GroupedLinearFamily) -> None:
    x = torch.empty((num_rows, _HIDDEN_SIZE), dtype=torch.bfloat16)
    out = torch.empty((num_rows, _UP_SIZE), dtype=torch.bfloat16)
    family(x, _ids(_NUM_EXPERTS + 1), out)


def _route(bound: Any) -> None:
    logits, weights = torch.empty((_NUM_TOKENS, _NUM_EXPERTS)), torch.empty((_NUM_TOKENS, _TOP_K))
    slots, rows = _ids(_NUM_TOKENS, _TOP_K), _ids(_NUM_TOKENS * _TOP_K)
    bound(logits, True, weights, slots, rows, _ids(_NUM_EXPERTS + 1))


def _combine(bound: Any) -> None:
    y = torch.empty((_NUM_TOKENS * _TOP_K, _HIDDEN_SIZE), dtype=torch.bfloat16)
    weights, out = torch.empty((_NUM_TOKENS, _TOP_K)), y[:_NUM_TOKENS]
    bound(y, _ids(_NUM_TOKENS, _TOP_K), weights, out)
